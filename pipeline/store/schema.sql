-- The one schema, for SQLite and PostgreSQL. Each section runs once, in order; never edit a
-- section that was released: add the next one. "only adds" marks one that the last release can live
-- with, because it changes nothing that its statements read or write; docs/operations.md says so.

-- version 1
CREATE TABLE jobs (
    id            TEXT PRIMARY KEY,
    root          TEXT NOT NULL,              -- absolute products folder
    state         TEXT NOT NULL,              -- planned running merging published failed cancelled
    plan_done     INTEGER NOT NULL DEFAULT 0, -- 0 while the folder is still being listed
    options       TEXT NOT NULL,              -- JSON: full, save_preprocessed
    fingerprint   TEXT,                       -- NULL until known; set once
    fingerprint_summary TEXT,                 -- the same for people
    base_version  TEXT,                       -- the version whose vectors the plan reuses
    index_version TEXT,                       -- what was published
    error         TEXT,                       -- why it failed, a sentence
    lease_until   DOUBLE PRECISION NOT NULL DEFAULT 0,  -- of the planner, then of the indexer
    created_at    DOUBLE PRECISION NOT NULL,  -- seconds since the epoch, as all times here
    finished_at   DOUBLE PRECISION
);

CREATE TABLE shards (
    job_id       TEXT NOT NULL REFERENCES jobs(id),
    n            INTEGER NOT NULL,
    kind         TEXT NOT NULL,               -- embed: images to read; reuse: rows of base_version;
                                              -- fetch: addresses
    state        TEXT NOT NULL,               -- pending queued running done
    images       INTEGER NOT NULL,
    progress     INTEGER NOT NULL DEFAULT 0,  -- images looked at so far
    embedded     INTEGER NOT NULL DEFAULT 0,
    reused       INTEGER NOT NULL DEFAULT 0,
    attempts     INTEGER NOT NULL DEFAULT 0,  -- starts that did not end; counted before the work
    owner        TEXT,                        -- the claim that holds the lease
    lease_until  DOUBLE PRECISION NOT NULL DEFAULT 0,
    queued_at    DOUBLE PRECISION NOT NULL DEFAULT 0,
    file         TEXT,
    sha256       TEXT,
    -- Last: counting the columns above must not read through these long rows.
    items        TEXT NOT NULL,               -- JSON: [[path, bytes, mtime_ns], ...] or [row, ...]
    PRIMARY KEY (job_id, n)
);

CREATE INDEX shards_by_state ON shards (job_id, state);

CREATE TABLE failures (
    job_id  TEXT NOT NULL REFERENCES jobs(id),
    n       INTEGER NOT NULL,                 -- the shard; -1 for what the listing found
    path    TEXT NOT NULL,
    stage   TEXT NOT NULL,
    reason  TEXT NOT NULL,
    warning INTEGER NOT NULL DEFAULT 0,       -- 1: indexed all the same
    PRIMARY KEY (job_id, n, path, warning)
);

-- Images of a shard that crashed its worker run alone; `starts` without an end count against one.
CREATE TABLE suspects (
    job_id   TEXT NOT NULL REFERENCES jobs(id),
    n        INTEGER NOT NULL,
    position INTEGER NOT NULL,
    starts   INTEGER NOT NULL,
    PRIMARY KEY (job_id, n, position)
);

-- version 2
-- What a shop knows about its products; a product without a row here is named after its image.
CREATE TABLE products (
    product_id TEXT PRIMARY KEY,
    facts      TEXT NOT NULL                  -- JSON object: the other columns
);

CREATE TABLE product_images (
    filename   TEXT PRIMARY KEY,              -- below the products folder
    product_id TEXT NOT NULL
);

-- What was shown to whom, kept for QUERY_LOG_DAYS.
CREATE TABLE queries (
    query_id      TEXT PRIMARY KEY,
    asked_at      DOUBLE PRECISION NOT NULL,
    who           TEXT NOT NULL,              -- empty: nobody known
    index_version TEXT NOT NULL,
    fingerprint   TEXT NOT NULL,
    shown         TEXT NOT NULL,              -- JSON: [[product_id, score], ...] by rank
    vector        BYTEA NOT NULL              -- float32, little-endian
);

CREATE INDEX queries_by_time ON queries (asked_at);

-- Holds what it needs of its query, so that it outlives the log.
CREATE TABLE feedback (
    query_id      TEXT NOT NULL,
    product_id    TEXT NOT NULL,
    who           TEXT NOT NULL,
    action        TEXT NOT NULL,              -- like dislike click purchase
    given_at      DOUBLE PRECISION NOT NULL,
    rank          INTEGER NOT NULL,           -- from 1, as it was shown
    index_version TEXT NOT NULL,
    fingerprint   TEXT NOT NULL,
    vector        BYTEA NOT NULL,
    PRIMARY KEY (query_id, product_id, who, action)
);

CREATE INDEX feedback_by_time ON feedback (fingerprint, given_at);

-- Counts changes, so that a reader sees cheaply whether what it holds is still true.
CREATE TABLE revisions (
    name TEXT PRIMARY KEY,                    -- products feedback
    n    INTEGER NOT NULL
);

-- version 3
-- The next shards in their order without a look at all that wait: a job may have millions.
CREATE INDEX shards_in_order ON shards (job_id, state, n);
DROP INDEX shards_by_state;

-- version 4
-- The order in which jobs were created, whatever the clock said then; 0: by an older imgrec.
ALTER TABLE jobs ADD COLUMN sequence INTEGER NOT NULL DEFAULT 0;
UPDATE jobs SET sequence = ordered.place
FROM (SELECT id, ROW_NUMBER() OVER (ORDER BY created_at, id) AS place FROM jobs) AS ordered
WHERE ordered.id = jobs.id;
INSERT INTO revisions (name, n) SELECT 'jobs', COUNT(*) FROM jobs;

-- The claim that holds the lease of the merge.
ALTER TABLE jobs ADD COLUMN owner TEXT;

-- A worker renews all its leases in one statement.
CREATE INDEX shards_by_owner ON shards (owner) WHERE state = 'running';

-- Where a finished shard's time went. Threads overlap: the sum may exceed the time of the shard.
CREATE TABLE shard_timings (
    job_id    TEXT NOT NULL REFERENCES jobs(id),
    n         INTEGER NOT NULL,
    read_s    DOUBLE PRECISION NOT NULL,
    decode_s  DOUBLE PRECISION NOT NULL,
    cut_out_s DOUBLE PRECISION NOT NULL,
    embed_s   DOUBLE PRECISION NOT NULL,
    write_s   DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (job_id, n)
);

-- version 5
-- Workers that cannot do a job as they are set up; emptied when one of its shards is finished.
CREATE TABLE refusals (
    job_id   TEXT NOT NULL REFERENCES jobs(id),
    worker   TEXT NOT NULL,                   -- its name in Celery
    first_at DOUBLE PRECISION NOT NULL,
    last_at  DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (job_id, worker)
);

-- Merges that ended in an error which counts.
ALTER TABLE jobs ADD COLUMN merge_attempts INTEGER NOT NULL DEFAULT 0;

-- version 6, only adds
-- Keys of the HTTP API; the secret itself is stored nowhere.
CREATE TABLE api_keys (
    id         TEXT PRIMARY KEY,              -- part of the key, not secret
    name       TEXT NOT NULL,
    scope      TEXT NOT NULL,                 -- search feedback admin
    sha256     TEXT NOT NULL,                 -- of the secret: 32 random bytes need no slow hash
    created_at DOUBLE PRECISION NOT NULL,
    revoked_at DOUBLE PRECISION
);

CREATE UNIQUE INDEX active_api_keys ON api_keys (name) WHERE revoked_at IS NULL;

-- Idempotency-Key of requests that created a job.
CREATE TABLE job_requests (
    client     TEXT NOT NULL,                 -- the id of the API key; empty: without keys
    key        TEXT NOT NULL,
    digest     TEXT NOT NULL,                 -- SHA-256 of what was requested
    job_id     TEXT NOT NULL REFERENCES jobs(id),
    created_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (client, key)
);

-- Whom to tell when a job has ended.
CREATE TABLE webhooks (
    job_id   TEXT PRIMARY KEY REFERENCES jobs(id),
    url      TEXT NOT NULL,
    state    TEXT NOT NULL DEFAULT 'pending', -- pending delivered failed
    attempts INTEGER NOT NULL DEFAULT 0,
    next_at  DOUBLE PRECISION NOT NULL DEFAULT 0,
    error    TEXT
);

-- The rank of the first product in `shown`: a later page begins below the first.
ALTER TABLE queries ADD COLUMN first_rank INTEGER NOT NULL DEFAULT 1;

-- version 7, only adds
-- The types of the catalogue's columns. A column of an older catalogue has none until an import.
CREATE TABLE product_columns (
    name         TEXT PRIMARY KEY,
    type         TEXT NOT NULL,               -- number text identifier boolean date
    decimal_sign TEXT NOT NULL,               -- what begins decimals: . ,
    chosen       INTEGER NOT NULL             -- 1: the user named the type
);

-- Variants of products that were imported as several rows; the facts of such a product are made
-- from those of its variants.
CREATE TABLE product_variants (
    item_id    TEXT PRIMARY KEY,
    product_id TEXT NOT NULL,
    position   INTEGER NOT NULL,
    facts      TEXT NOT NULL                  -- JSON object
);

CREATE INDEX variants_by_product ON product_variants (product_id, position);

-- Addresses of a product's images, as the last import listed them.
CREATE TABLE product_urls (
    product_id TEXT NOT NULL,
    position   INTEGER NOT NULL,
    url        TEXT NOT NULL,
    PRIMARY KEY (product_id, position)
);

CREATE INDEX images_by_product ON product_images (product_id);

-- version 8, only adds
-- Searches for images that show the same thing.
CREATE TABLE duplicate_searches (
    id            TEXT PRIMARY KEY,
    index_version TEXT NOT NULL,              -- its identity: v0007/JOB
    threshold     DOUBLE PRECISION,           -- lowest cosine; NULL: auto
    state         TEXT NOT NULL,              -- planned running done failed
    images        INTEGER NOT NULL DEFAULT 0, -- to look at in this step
    looked_at     INTEGER NOT NULL DEFAULT 0,
    owner         TEXT,                       -- the claim that holds the lease
    lease_until   DOUBLE PRECISION NOT NULL DEFAULT 0,
    error         TEXT,                       -- why it failed, a sentence
    created_at    DOUBLE PRECISION NOT NULL,
    finished_at   DOUBLE PRECISION,
    -- Last: it is long. JSON: {"facts": {path: [...]}, "pairs": [[path, other, kind, score], ...]}
    result        TEXT
);

-- Images that a person said are not the same; path < other.
CREATE TABLE not_duplicates (
    path       TEXT NOT NULL,
    other      TEXT NOT NULL,
    decided_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (path, other)
);

-- version 9, only adds
-- 'fetching' while the images of a feed are fetched, and planned from what has come.
ALTER TABLE jobs ADD COLUMN stage TEXT NOT NULL DEFAULT '';

-- Files and addresses that products were imported from, by the name that the user gave them.
CREATE TABLE feeds (
    name          TEXT PRIMARY KEY,
    source        TEXT NOT NULL,              -- the file or the address, without a query
    digest        TEXT NOT NULL,              -- of the address and of how it was read
    sha256        TEXT NOT NULL,              -- of the content; empty for a file
    etag          TEXT NOT NULL,
    last_modified TEXT NOT NULL,
    imported_at   DOUBLE PRECISION NOT NULL
);

-- The feed that listed the address.
ALTER TABLE product_urls ADD COLUMN feed TEXT NOT NULL DEFAULT '';
CREATE INDEX urls_in_order ON product_urls (url, feed);

-- What is known of the address of an image since it was last asked for.
CREATE TABLE fetched (
    url           TEXT PRIMARY KEY,
    outcome       TEXT NOT NULL,              -- fetched unchanged failed delayed
    reason        TEXT NOT NULL,              -- of failed and delayed ones
    sha256        TEXT NOT NULL,              -- of the file; empty: there is none
    bytes         INTEGER NOT NULL,
    suffix        TEXT NOT NULL,              -- by its content, e.g. .jpg
    etag          TEXT NOT NULL,
    last_modified TEXT NOT NULL,
    job_id        TEXT NOT NULL,              -- the job that asked
    checked_at    DOUBLE PRECISION NOT NULL
);

CREATE INDEX fetched_by_content ON fetched (sha256);

-- version 10, only adds
-- Images that were added to the published index, or removed from it, between rebuilds; the last
-- change of a path counts.
CREATE TABLE live_changes (
    path        TEXT PRIMARY KEY,
    n           INTEGER NOT NULL,             -- the order of the changes
    changed_at  DOUBLE PRECISION NOT NULL,
    product_id  TEXT NOT NULL,
    bytes       BIGINT NOT NULL,              -- of the file, and its mtime: a later rebuild leaves
    mtime_ns    BIGINT NOT NULL,              -- out the file that was removed, not another one
    sha256      TEXT NOT NULL,                -- empty: removed
    fingerprint TEXT NOT NULL,
    vector      BYTEA                         -- float32, little-endian; NULL: removed
);

-- version 11, only adds
-- The last live change that a job's plan takes into account: clocks may be set back.
ALTER TABLE jobs ADD COLUMN changes_seen INTEGER NOT NULL DEFAULT -1;  -- -1: by the last release

ALTER TABLE duplicate_searches ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;  -- claims
