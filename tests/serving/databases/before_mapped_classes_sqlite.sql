BEGIN TRANSACTION;
CREATE TABLE jobs (
	id VARCHAR(36) NOT NULL, 
	"key" VARCHAR(80) NOT NULL, 
	status VARCHAR(12) NOT NULL, 
	message TEXT NOT NULL, 
	progress INTEGER NOT NULL, 
	inputs JSON NOT NULL, 
	created DATETIME NOT NULL, 
	updated DATETIME NOT NULL, 
	started DATETIME, 
	finished DATETIME, key_id VARCHAR(36), 
	PRIMARY KEY (id)
);
INSERT INTO "jobs" VALUES('2a53de97-a224-4f2b-819d-5c11e3d974c6','revoked','dismissed','dismissed',0,'{"raster": "large.tif", "model": "landslide-unet-3band", "version": "1", "bands": null, "threshold": null, "minimum_area": 0.0, "subscribers": {}}','2026-11-30 09:35:39.338062','2026-11-30 09:35:39.407213',NULL,'2026-11-30 09:35:39.407213','0ca014f5-44bb-4ad7-9a46-ccaaffd01e54');
INSERT INTO "jobs" VALUES('54359ebb-8be7-43c6-a59b-b72d9b5792dc','revoked','successful','30 landslides, 6.2 ha; 0.0% of the raster is not mapped',100,'{"raster": "small.tif", "model": "landslide-unet-3band", "version": "1", "bands": null, "threshold": null, "minimum_area": 0.0, "subscribers": {}}','2026-11-30 09:35:40.486196','2026-11-30 09:35:46.495049','2026-11-30 09:35:41.175488','2026-11-30 09:35:46.494795','0ca014f5-44bb-4ad7-9a46-ccaaffd01e54');
INSERT INTO "jobs" VALUES('3399ece7-293f-4c00-a522-a79e42201996','field office Medellín','successful','30 landslides, 6.2 ha; 0.0% of the raster is not mapped',100,'{"raster": "small.tif", "model": "landslide-unet-3band", "version": "1", "bands": null, "threshold": 0.5, "minimum_area": 100.0, "subscribers": {}}','2026-11-30 09:35:54.659611','2026-11-30 09:35:56.724915','2026-11-30 09:35:55.067150','2026-11-30 09:35:56.724605','7355fe9f-8618-4f99-a36e-87c19e607ba9');
INSERT INTO "jobs" VALUES('825aac16-bac5-4e4d-9e70-e68fd65031d9','field office Medellín','dismissed','dismissed',1,'{"raster": "large.tif", "model": "landslide-unet-3band", "version": "1", "bands": null, "threshold": null, "minimum_area": 0.0, "subscribers": {}}','2026-11-30 09:36:01.228427','2026-11-30 09:36:05.259459','2026-11-30 09:36:01.239821','2026-11-30 09:36:05.259459','7355fe9f-8618-4f99-a36e-87c19e607ba9');
INSERT INTO "jobs" VALUES('2972efca-527e-40f6-8274-4a1a40a56aca','field office Medellín','failed','doomed.tif: no such file',0,'{"raster": "doomed.tif", "model": "landslide-unet-3band", "version": "1", "bands": null, "threshold": null, "minimum_area": 0.0, "subscribers": {}}','2026-11-30 09:36:01.346436','2026-11-30 09:36:06.847816','2026-11-30 09:36:06.833438','2026-11-30 09:36:06.847569','7355fe9f-8618-4f99-a36e-87c19e607ba9');
INSERT INTO "jobs" VALUES('14a2173c-7807-4a8e-b2f5-723e6a40986a','field office Medellín','running','1 of 64 tiles are done',1,'{"raster": "large.tif", "model": "landslide-unet-3band", "version": "1", "bands": null, "threshold": null, "minimum_area": 0.0, "subscribers": {}}','2026-11-30 09:36:07.663572','2026-11-30 09:36:11.164349','2026-11-30 09:36:07.879651',NULL,'7355fe9f-8618-4f99-a36e-87c19e607ba9');
INSERT INTO "jobs" VALUES('377ed539-aef1-42dc-ba39-d3d914382c51','field office Medellín','accepted','waits for a worker',0,'{"raster": "waiting.tif", "model": "landslide-unet-3band", "version": "1", "bands": ["red", "green", "blue"], "threshold": null, "minimum_area": 0.0, "subscribers": {}}','2026-11-30 09:36:07.742843','2026-11-30 09:36:07.742843',NULL,NULL,'7355fe9f-8618-4f99-a36e-87c19e607ba9');
CREATE TABLE "keys" (
	id VARCHAR(36) NOT NULL, 
	name VARCHAR(80) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	scope VARCHAR(8) NOT NULL, 
	created DATETIME NOT NULL, 
	expires DATETIME, 
	PRIMARY KEY (id), 
	UNIQUE (name), 
	UNIQUE (digest)
);
INSERT INTO "keys" VALUES('e511fd67-c75f-4ab3-81e2-ddaae48e80db','Geological Survey','4b0d4781c3a3cca767f3c58c5d183f374ae0790419590b7eeeca3281ca4f309c','admin','2026-11-30 09:35:00.978884','2126-11-06 09:35:00.978884');
INSERT INTO "keys" VALUES('7355fe9f-8618-4f99-a36e-87c19e607ba9','field office Medellín','ea597f90acbc0247cb71ede9e53cf8bd9673a045487312c0a5b5ce29d0947a52','run','2026-11-30 09:35:05.359392','2126-11-06 09:35:05.359392');
INSERT INTO "keys" VALUES('30f167d0-25b3-4a45-a120-77adcb5e67aa','visitor','7046cd4797606d7ad5e0673d96c785b786ee1c8887a9133f4b49a5512757eef0','read','2026-11-30 09:35:10.200700','2126-11-06 09:35:10.200700');
CREATE TABLE sessions (
	digest VARCHAR(64) NOT NULL, 
	key_id VARCHAR(36) NOT NULL, 
	expires DATETIME NOT NULL, 
	PRIMARY KEY (digest)
);
INSERT INTO "sessions" VALUES('f240f1c8fae0748cc75d50d59aca57cec1cc1dc7adc1fde53421e94f03cf3f10','e511fd67-c75f-4ab3-81e2-ddaae48e80db','2026-11-30 21:36:00.164553');
CREATE TABLE talud_service_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT talud_service_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "talud_service_version" VALUES('0002');
CREATE TABLE uploads (
	id VARCHAR(36) NOT NULL, 
	key_id VARCHAR(36) NOT NULL, 
	bytes BIGINT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "uploads" VALUES('9ab9cb62-88ae-42d7-b0ec-4d2ac44899a0','7355fe9f-8618-4f99-a36e-87c19e607ba9',35246);
CREATE TABLE verdict_changes (
	number INTEGER NOT NULL, 
	job VARCHAR(36) NOT NULL, 
	polygon VARCHAR(36) NOT NULL, 
	verdict VARCHAR(10) NOT NULL, 
	reviewer VARCHAR(80) NOT NULL, 
	key_id VARCHAR(36), 
	reviewed DATETIME NOT NULL, 
	geometry JSON, 
	area FLOAT, 
	PRIMARY KEY (number)
);
INSERT INTO "verdict_changes" VALUES(1,'3399ece7-293f-4c00-a522-a79e42201996','1','rejected','Ana Ríos','7355fe9f-8618-4f99-a36e-87c19e607ba9','2026-11-30 09:35:56.880385','null',NULL);
INSERT INTO "verdict_changes" VALUES(2,'3399ece7-293f-4c00-a522-a79e42201996','1','accepted','Ana Ríos','7355fe9f-8618-4f99-a36e-87c19e607ba9','2026-11-30 09:35:56.939175','null',NULL);
INSERT INTO "verdict_changes" VALUES(3,'3399ece7-293f-4c00-a522-a79e42201996','2','rejected','Ana Ríos','7355fe9f-8618-4f99-a36e-87c19e607ba9','2026-11-30 09:35:56.979074','null',NULL);
INSERT INTO "verdict_changes" VALUES(4,'3399ece7-293f-4c00-a522-a79e42201996','3','accepted','Ana Ríos','7355fe9f-8618-4f99-a36e-87c19e607ba9','2026-11-30 09:35:57.045446','{"type": "Polygon", "coordinates": [[[400389.18513779045, 649859.7411324997], [400433.4679898482, 649859.6699120847], [400433.53909906617, 649903.8919587533], [400389.25627864513, 649903.9631839466], [400389.18513779045, 649859.7411324997]]]}',1.9582828223209689895e+03);
INSERT INTO "verdict_changes" VALUES(5,'3399ece7-293f-4c00-a522-a79e42201996','96719e36-f95b-409a-b99e-f1b9c511fbbe','accepted','Ana Ríos','7355fe9f-8618-4f99-a36e-87c19e607ba9','2026-11-30 09:35:57.248406','{"type": "Polygon", "coordinates": [[[400366.7325716221, 649666.8858750674], [400433.15705845517, 649666.7790638312], [400433.2636925394, 649733.1121300345], [400366.8392768691, 649733.2189520232], [400366.7325716221, 649666.8858750674]]]}',4.40614927360070942089e+03);
INSERT INTO "verdict_changes" VALUES(6,'3399ece7-293f-4c00-a522-a79e42201996','4','accepted','Luz','e511fd67-c75f-4ab3-81e2-ddaae48e80db','2026-11-30 09:35:57.382678','null',NULL);
INSERT INTO "verdict_changes" VALUES(7,'3399ece7-293f-4c00-a522-a79e42201996','4','withdrawn','Geological Survey','e511fd67-c75f-4ab3-81e2-ddaae48e80db','2026-11-30 09:35:57.428369',NULL,NULL);
INSERT INTO "verdict_changes" VALUES(8,'3399ece7-293f-4c00-a522-a79e42201996','2','accepted','Luz','e511fd67-c75f-4ab3-81e2-ddaae48e80db','2026-11-30 09:35:57.496278','null',NULL);
CREATE TABLE verdicts (
	job VARCHAR(36) NOT NULL, 
	polygon VARCHAR(36) NOT NULL, 
	verdict VARCHAR(10) NOT NULL, 
	reviewer VARCHAR(80) NOT NULL, 
	reviewed DATETIME NOT NULL, 
	geometry JSON, 
	area FLOAT, key_id VARCHAR(36), 
	PRIMARY KEY (job, polygon)
);
INSERT INTO "verdicts" VALUES('3399ece7-293f-4c00-a522-a79e42201996','1','accepted','Ana Ríos','2026-11-30 09:35:56.939175',NULL,NULL,'7355fe9f-8618-4f99-a36e-87c19e607ba9');
INSERT INTO "verdicts" VALUES('3399ece7-293f-4c00-a522-a79e42201996','2','accepted','Luz','2026-11-30 09:35:57.496278',NULL,NULL,'e511fd67-c75f-4ab3-81e2-ddaae48e80db');
INSERT INTO "verdicts" VALUES('3399ece7-293f-4c00-a522-a79e42201996','3','accepted','Ana Ríos','2026-11-30 09:35:57.045446','{"type": "Polygon", "coordinates": [[[400389.18513779045, 649859.7411324997], [400433.4679898482, 649859.6699120847], [400433.53909906617, 649903.8919587533], [400389.25627864513, 649903.9631839466], [400389.18513779045, 649859.7411324997]]]}',1.9582828223209689895e+03,'7355fe9f-8618-4f99-a36e-87c19e607ba9');
INSERT INTO "verdicts" VALUES('3399ece7-293f-4c00-a522-a79e42201996','96719e36-f95b-409a-b99e-f1b9c511fbbe','accepted','Ana Ríos','2026-11-30 09:35:57.248406','{"type": "Polygon", "coordinates": [[[400366.7325716221, 649666.8858750674], [400433.15705845517, 649666.7790638312], [400433.2636925394, 649733.1121300345], [400366.8392768691, 649733.2189520232], [400366.7325716221, 649666.8858750674]]]}',4.40614927360070942089e+03,'7355fe9f-8618-4f99-a36e-87c19e607ba9');
CREATE INDEX ix_jobs_created ON jobs (created);
CREATE INDEX ix_jobs_key ON jobs ("key");
CREATE INDEX ix_jobs_status ON jobs (status);
CREATE INDEX ix_jobs_key_id ON jobs (key_id);
CREATE INDEX ix_sessions_key_id ON sessions (key_id);
CREATE INDEX ix_uploads_key_id ON uploads (key_id);
CREATE INDEX ix_verdict_changes_job ON verdict_changes (job);
COMMIT;
