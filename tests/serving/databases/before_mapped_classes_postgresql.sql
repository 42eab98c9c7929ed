SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE public.jobs (
    id character varying(36) NOT NULL,
    key character varying(80) NOT NULL,
    status character varying(12) NOT NULL,
    message text NOT NULL,
    progress integer NOT NULL,
    inputs json NOT NULL,
    created timestamp with time zone NOT NULL,
    updated timestamp with time zone NOT NULL,
    started timestamp with time zone,
    finished timestamp with time zone,
    key_id character varying(36)
);
CREATE TABLE public.keys (
    id character varying(36) NOT NULL,
    name character varying(80) NOT NULL,
    digest character varying(64) NOT NULL,
    scope character varying(8) NOT NULL,
    created timestamp with time zone NOT NULL,
    expires timestamp with time zone
);
CREATE TABLE public.sessions (
    digest character varying(64) NOT NULL,
    key_id character varying(36) NOT NULL,
    expires timestamp with time zone NOT NULL
);
CREATE TABLE public.talud_service_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.uploads (
    id character varying(36) NOT NULL,
    key_id character varying(36) NOT NULL,
    bytes bigint NOT NULL
);
CREATE TABLE public.verdict_changes (
    number integer NOT NULL,
    job character varying(36) NOT NULL,
    polygon character varying(36) NOT NULL,
    verdict character varying(10) NOT NULL,
    reviewer character varying(80) NOT NULL,
    key_id character varying(36),
    reviewed timestamp with time zone NOT NULL,
    geometry json,
    area double precision
);
CREATE SEQUENCE public.verdict_changes_number_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.verdict_changes_number_seq OWNED BY public.verdict_changes.number;
CREATE TABLE public.verdicts (
    job character varying(36) NOT NULL,
    polygon character varying(36) NOT NULL,
    verdict character varying(10) NOT NULL,
    reviewer character varying(80) NOT NULL,
    reviewed timestamp with time zone NOT NULL,
    geometry json,
    area double precision,
    key_id character varying(36)
);
ALTER TABLE ONLY public.verdict_changes ALTER COLUMN number SET DEFAULT nextval('public.verdict_changes_number_seq'::regclass);
INSERT INTO public.jobs VALUES ('183893ff-a8a7-4005-a457-51606b973e7f', 'revoked', 'dismissed', 'dismissed', 0, '{"raster": "large.tif", "model": "landslide-unet-3band", "version": "1", "bands": null, "threshold": null, "minimum_area": 0.0, "subscribers": {}}', '2026-11-30 09:36:50.478829+00', '2026-11-30 09:36:50.492915+00', NULL, '2026-11-30 09:36:50.492915+00', '434797d1-eb55-4668-bcda-0bee542a2d7e');
INSERT INTO public.jobs VALUES ('ca26d418-1e05-4073-a20d-1913bf238e60', 'revoked', 'successful', '30 landslides, 6.2 ha; 0.0% of the raster is not mapped', 100, '{"raster": "small.tif", "model": "landslide-unet-3band", "version": "1", "bands": null, "threshold": null, "minimum_area": 0.0, "subscribers": {}}', '2026-11-30 09:36:50.582774+00', '2026-11-30 09:36:54.000401+00', '2026-11-30 09:36:50.856527+00', '2026-11-30 09:36:54.000143+00', '434797d1-eb55-4668-bcda-0bee542a2d7e');
INSERT INTO public.jobs VALUES ('c2a0555c-c86e-41ff-b3bf-487b36ff362c', 'field office Medellín', 'dismissed', 'dismissed', 1, '{"raster": "large.tif", "model": "landslide-unet-3band", "version": "1", "bands": null, "threshold": null, "minimum_area": 0.0, "subscribers": {}}', '2026-11-30 09:36:58.318701+00', '2026-11-30 09:36:59.44539+00', '2026-11-30 09:36:58.603636+00', '2026-11-30 09:36:59.44539+00', 'b835d939-c076-4406-8abd-83e0bfad4f7e');
INSERT INTO public.jobs VALUES ('1d5d8689-2940-4d51-a518-cf6bfcb71d64', 'field office Medellín', 'failed', 'doomed.tif: no such file', 0, '{"raster": "doomed.tif", "model": "landslide-unet-3band", "version": "1", "bands": null, "threshold": null, "minimum_area": 0.0, "subscribers": {}}', '2026-11-30 09:36:58.392185+00', '2026-11-30 09:37:00.173415+00', '2026-11-30 09:37:00.145929+00', '2026-11-30 09:37:00.17325+00', 'b835d939-c076-4406-8abd-83e0bfad4f7e');
INSERT INTO public.jobs VALUES ('eb1995a3-4bdd-40b3-8579-26d12f01eb52', 'field office Medellín', 'accepted', 'waits for a worker', 0, '{"raster": "waiting.tif", "model": "landslide-unet-3band", "version": "1", "bands": ["red", "green", "blue"], "threshold": null, "minimum_area": 0.0, "subscribers": {}}', '2026-11-30 09:37:00.511132+00', '2026-11-30 09:37:00.511132+00', NULL, NULL, 'b835d939-c076-4406-8abd-83e0bfad4f7e');
INSERT INTO public.jobs VALUES ('78ad2f4c-ca18-4d7b-a779-951733072c5d', 'field office Medellín', 'successful', '30 landslides, 6.2 ha; 0.0% of the raster is not mapped', 100, '{"raster": "small.tif", "model": "landslide-unet-3band", "version": "1", "bands": null, "threshold": 0.5, "minimum_area": 100.0, "subscribers": {}}', '2026-11-30 09:36:56.349863+00', '2026-11-30 09:36:57.320027+00', '2026-11-30 09:36:56.532348+00', '2026-11-30 09:36:57.319752+00', 'b835d939-c076-4406-8abd-83e0bfad4f7e');
INSERT INTO public.jobs VALUES ('bb474fa0-2788-4607-80e2-58fff3457f8b', 'field office Medellín', 'running', '1 of 64 tiles are done', 1, '{"raster": "large.tif", "model": "landslide-unet-3band", "version": "1", "bands": null, "threshold": null, "minimum_area": 0.0, "subscribers": {}}', '2026-11-30 09:37:00.427096+00', '2026-11-30 09:37:01.551305+00', '2026-11-30 09:37:00.699179+00', NULL, 'b835d939-c076-4406-8abd-83e0bfad4f7e');
INSERT INTO public.keys VALUES ('02ca646e-8ba1-42cf-89dc-ca2a1f89cf80', 'Geological Survey', 'b017ebcf11547ffcbc5feccb6a1895f1088db38804d2d5360a1df89476cb4446', 'admin', '2026-11-30 09:36:33.882818+00', '2126-11-06 09:36:33.882818+00');
INSERT INTO public.keys VALUES ('b835d939-c076-4406-8abd-83e0bfad4f7e', 'field office Medellín', 'dbe77b1206b44183c58e7d134a41eaa982b55e78afbdf57983eb76a625e90a7b', 'run', '2026-11-30 09:36:35.810911+00', '2126-11-06 09:36:35.810911+00');
INSERT INTO public.keys VALUES ('1f8e4b75-ddc7-4d71-92d6-1a228771e68d', 'visitor', '70f15a6506e3ea79df913dbbc42a08f23cd669510c7bab0bf61d4abc9e383791', 'read', '2026-11-30 09:36:37.233981+00', '2126-11-06 09:36:37.233981+00');
INSERT INTO public.sessions VALUES ('c168e09e361a59f4b42e0ec85a9944baeb8ba8be02fc1d4e4ef685809545ec48', '02ca646e-8ba1-42cf-89dc-ca2a1f89cf80', '2026-11-30 21:36:57.836014+00');
INSERT INTO public.talud_service_version VALUES ('0002');
INSERT INTO public.uploads VALUES ('18204d2b-5476-4fee-b3d5-53e3b5e2d494', 'b835d939-c076-4406-8abd-83e0bfad4f7e', 35246);
INSERT INTO public.verdict_changes VALUES (1, '78ad2f4c-ca18-4d7b-a779-951733072c5d', '1', 'rejected', 'Ana Ríos', 'b835d939-c076-4406-8abd-83e0bfad4f7e', '2026-11-30 09:36:57.485714+00', 'null', NULL);
INSERT INTO public.verdict_changes VALUES (2, '78ad2f4c-ca18-4d7b-a779-951733072c5d', '1', 'accepted', 'Ana Ríos', 'b835d939-c076-4406-8abd-83e0bfad4f7e', '2026-11-30 09:36:57.52502+00', 'null', NULL);
INSERT INTO public.verdict_changes VALUES (3, '78ad2f4c-ca18-4d7b-a779-951733072c5d', '2', 'rejected', 'Ana Ríos', 'b835d939-c076-4406-8abd-83e0bfad4f7e', '2026-11-30 09:36:57.567101+00', 'null', NULL);
INSERT INTO public.verdict_changes VALUES (4, '78ad2f4c-ca18-4d7b-a779-951733072c5d', '3', 'accepted', 'Ana Ríos', 'b835d939-c076-4406-8abd-83e0bfad4f7e', '2026-11-30 09:36:57.628246+00', '{"type": "Polygon", "coordinates": [[[400389.18513779045, 649859.7411324997], [400433.4679898482, 649859.6699120847], [400433.53909906617, 649903.8919587533], [400389.25627864513, 649903.9631839466], [400389.18513779045, 649859.7411324997]]]}', 1958.282822320969);
INSERT INTO public.verdict_changes VALUES (5, '78ad2f4c-ca18-4d7b-a779-951733072c5d', 'c476671d-76cb-417f-9fd7-0e92f9c75106', 'accepted', 'Ana Ríos', 'b835d939-c076-4406-8abd-83e0bfad4f7e', '2026-11-30 09:36:57.69252+00', '{"type": "Polygon", "coordinates": [[[400366.7325716221, 649666.8858750674], [400433.15705845517, 649666.7790638312], [400433.2636925394, 649733.1121300345], [400366.8392768691, 649733.2189520232], [400366.7325716221, 649666.8858750674]]]}', 4406.149273600709);
INSERT INTO public.verdict_changes VALUES (6, '78ad2f4c-ca18-4d7b-a779-951733072c5d', '4', 'accepted', 'Luz', '02ca646e-8ba1-42cf-89dc-ca2a1f89cf80', '2026-11-30 09:36:57.727354+00', 'null', NULL);
INSERT INTO public.verdict_changes VALUES (7, '78ad2f4c-ca18-4d7b-a779-951733072c5d', '4', 'withdrawn', 'Geological Survey', '02ca646e-8ba1-42cf-89dc-ca2a1f89cf80', '2026-11-30 09:36:57.768255+00', NULL, NULL);
INSERT INTO public.verdict_changes VALUES (8, '78ad2f4c-ca18-4d7b-a779-951733072c5d', '2', 'accepted', 'Luz', '02ca646e-8ba1-42cf-89dc-ca2a1f89cf80', '2026-11-30 09:36:57.785955+00', 'null', NULL);
INSERT INTO public.verdicts VALUES ('78ad2f4c-ca18-4d7b-a779-951733072c5d', '1', 'accepted', 'Ana Ríos', '2026-11-30 09:36:57.52502+00', NULL, NULL, 'b835d939-c076-4406-8abd-83e0bfad4f7e');
INSERT INTO public.verdicts VALUES ('78ad2f4c-ca18-4d7b-a779-951733072c5d', '3', 'accepted', 'Ana Ríos', '2026-11-30 09:36:57.628246+00', '{"type": "Polygon", "coordinates": [[[400389.18513779045, 649859.7411324997], [400433.4679898482, 649859.6699120847], [400433.53909906617, 649903.8919587533], [400389.25627864513, 649903.9631839466], [400389.18513779045, 649859.7411324997]]]}', 1958.282822320969, 'b835d939-c076-4406-8abd-83e0bfad4f7e');
INSERT INTO public.verdicts VALUES ('78ad2f4c-ca18-4d7b-a779-951733072c5d', 'c476671d-76cb-417f-9fd7-0e92f9c75106', 'accepted', 'Ana Ríos', '2026-11-30 09:36:57.69252+00', '{"type": "Polygon", "coordinates": [[[400366.7325716221, 649666.8858750674], [400433.15705845517, 649666.7790638312], [400433.2636925394, 649733.1121300345], [400366.8392768691, 649733.2189520232], [400366.7325716221, 649666.8858750674]]]}', 4406.149273600709, 'b835d939-c076-4406-8abd-83e0bfad4f7e');
INSERT INTO public.verdicts VALUES ('78ad2f4c-ca18-4d7b-a779-951733072c5d', '2', 'accepted', 'Luz', '2026-11-30 09:36:57.785955+00', NULL, NULL, '02ca646e-8ba1-42cf-89dc-ca2a1f89cf80');
SELECT pg_catalog.setval('public.verdict_changes_number_seq', 8, true);
ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.keys
    ADD CONSTRAINT keys_with_ids_digest_key UNIQUE (digest);
ALTER TABLE ONLY public.keys
    ADD CONSTRAINT keys_with_ids_name_key UNIQUE (name);
ALTER TABLE ONLY public.keys
    ADD CONSTRAINT keys_with_ids_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_pkey PRIMARY KEY (digest);
ALTER TABLE ONLY public.talud_service_version
    ADD CONSTRAINT talud_service_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.uploads
    ADD CONSTRAINT uploads_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.verdict_changes
    ADD CONSTRAINT verdict_changes_pkey PRIMARY KEY (number);
ALTER TABLE ONLY public.verdicts
    ADD CONSTRAINT verdicts_pkey PRIMARY KEY (job, polygon);
CREATE INDEX ix_jobs_created ON public.jobs USING btree (created);
CREATE INDEX ix_jobs_key ON public.jobs USING btree (key);
CREATE INDEX ix_jobs_key_id ON public.jobs USING btree (key_id);
CREATE INDEX ix_jobs_status ON public.jobs USING btree (status);
CREATE INDEX ix_sessions_key_id ON public.sessions USING btree (key_id);
CREATE INDEX ix_uploads_key_id ON public.uploads USING btree (key_id);
CREATE INDEX ix_verdict_changes_job ON public.verdict_changes USING btree (job);
