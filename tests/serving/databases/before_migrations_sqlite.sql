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
	finished DATETIME, 
	PRIMARY KEY (id)
);
INSERT INTO "jobs" VALUES('00000000-0000-4000-8000-000000000000','field office Medellín','successful','4 landslides, 2.1 ha; 0.0% of the raster is not mapped',100,'{"raster": "basins/r0.tif", "model": "landslide-unet-3band", "version": "2", "bands": null, "threshold": 0.4, "minimum_area": 100.0, "subscribers": {}}','2026-11-02 09:30:15.123456','2026-11-02 09:39:15.123456','2026-11-02 09:31:15.123456','2026-11-02 09:39:15.123456');
INSERT INTO "jobs" VALUES('00000000-0000-4000-8000-000000000001','Geological Survey','failed','a.tif: damaged',0,'{"raster": "basins/r1.tif", "model": "landslide-unet-3band", "version": "2", "bands": null, "threshold": 0.4, "minimum_area": 100.0, "subscribers": {}}','2026-11-02 10:30:15.123456','2026-11-02 10:39:15.123456','2026-11-02 10:31:15.123456','2026-11-02 10:39:15.123456');
INSERT INTO "jobs" VALUES('00000000-0000-4000-8000-000000000002','revoked long ago','dismissed','dismissed',40,'{"raster": "basins/r2.tif", "model": "landslide-unet-3band", "version": "2", "bands": null, "threshold": 0.4, "minimum_area": 100.0, "subscribers": {}}','2026-11-02 11:30:15.123456','2026-11-02 11:39:15.123456','2026-11-02 11:31:15.123456','2026-11-02 11:39:15.123456');
INSERT INTO "jobs" VALUES('00000000-0000-4000-8000-000000000003','local','successful','0 landslides',100,'{"raster": "basins/r3.tif", "model": "landslide-unet-3band", "version": "2", "bands": null, "threshold": 0.4, "minimum_area": 100.0, "subscribers": {}}','2026-11-02 12:30:15.123456','2026-11-02 12:39:15.123456','2026-11-02 12:31:15.123456','2026-11-02 12:39:15.123456');
CREATE TABLE keys (
	name VARCHAR(80) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	scope VARCHAR(8) NOT NULL, 
	created DATETIME NOT NULL, 
	PRIMARY KEY (name), 
	UNIQUE (digest)
);
INSERT INTO "keys" VALUES('Geological Survey','4e76cf71e5df6491580e56c0dc98c1fa1c0ba14a235d07939da046f03a9c99ca','admin','2026-11-02 09:30:15.123456');
INSERT INTO "keys" VALUES('field office Medellín','14a8c899c050736dccb8dfa27dca31a1343afd884edd62094a6a23aed0df6872','run','2026-11-03 09:30:15.123456');
INSERT INTO "keys" VALUES('visitor','c46ff9e713d892f0b0bb3e539c359b791fafc2408956820a9c6fb6a9a05f2ef7','read','2026-11-04 09:30:15.123456');
CREATE TABLE verdicts (
	job VARCHAR(36) NOT NULL, 
	polygon VARCHAR(36) NOT NULL, 
	verdict VARCHAR(10) NOT NULL, 
	reviewer VARCHAR(80) NOT NULL, 
	reviewed DATETIME NOT NULL, 
	geometry JSON, 
	area FLOAT, 
	PRIMARY KEY (job, polygon)
);
INSERT INTO "verdicts" VALUES('00000000-0000-4000-8000-000000000000','1','accepted','Ana Ríos','2026-11-02 09:30:15.123456',NULL,NULL);
INSERT INTO "verdicts" VALUES('00000000-0000-4000-8000-000000000000','2','rejected','Luz','2026-11-02 09:31:15.123456',NULL,NULL);
INSERT INTO "verdicts" VALUES('00000000-0000-4000-8000-000000000000','6f9b0a52-8d1c-4b7e-9a51-0c2f4f6a7d10','accepted','Ana Ríos','2026-11-02 09:32:15.123456','{"type": "Polygon", "coordinates": [[[400600.0, 649400.0], [400600.0, 649500.0], [400500.0, 649500.0], [400500.0, 649400.0], [400600.0, 649400.0]]]}',10000.0);
INSERT INTO "verdicts" VALUES('00000000-0000-4000-8000-000000000002','1','accepted','Ana Ríos','2026-11-02 09:30:15.123456',NULL,NULL);
CREATE INDEX ix_jobs_status ON jobs (status);
CREATE INDEX ix_jobs_key ON jobs ("key");
CREATE INDEX ix_jobs_created ON jobs (created);
COMMIT;
