-- Every statement about jobs and their shards, by its name; see queries.py.
--
-- Written once for SQLite and PostgreSQL. `:name` is a value. `now_s()` is the time in seconds since
-- the epoch by the database's clock: hosts need not agree on theirs. No lease is longer than 7200 s:
-- one that ends later is from before that clock was set back. A job is open while it has no
-- `finished_at`.

-- jobs ----------------------------------------------------------------------------------------------

-- name: next_job_sequence
INSERT INTO revisions (name, n) VALUES ('jobs', 1)
ON CONFLICT (name) DO UPDATE SET n = revisions.n + 1
RETURNING n AS sequence, now_s() AS now;

-- name: create_job
INSERT INTO jobs (id, sequence, root, state, options, fingerprint, fingerprint_summary,
                  base_version, lease_until, created_at, changes_seen)
VALUES (:id, :sequence, :root, 'planned', :options, :fingerprint, :fingerprint_summary,
        :base_version, :now + :lease_s, :now,
        COALESCE((SELECT n FROM revisions WHERE name = 'live changes'), 0));

-- name: renew_plan_lease
UPDATE jobs SET lease_until = now_s() + :lease_s
WHERE id = :job_id AND COALESCE(owner, '') = :owner AND finished_at IS NULL RETURNING id;

-- name: finish_plan
UPDATE jobs SET plan_done = 1, stage = '', options = :options, lease_until = 0, merge_attempts = 0
WHERE id = :job_id AND COALESCE(owner, '') = :owner AND finished_at IS NULL RETURNING id;

-- name: fail_abandoned_plans
UPDATE jobs SET state = 'failed', finished_at = now_s(), error = :error
WHERE plan_done = 0 AND stage = '' AND finished_at IS NULL AND (lease_until < now_s() OR lease_until > now_s() + 7200);

-- name: get_job
SELECT *, COALESCE(finished_at, now_s()) - created_at AS seconds FROM jobs WHERE id = :job_id;

-- name: list_open_jobs
SELECT *, now_s() - created_at AS seconds FROM jobs
WHERE finished_at IS NULL ORDER BY sequence, created_at, id;

-- name: list_jobs_with_progress
WITH newest AS (
    SELECT * FROM jobs ORDER BY sequence DESC, created_at DESC, id DESC LIMIT :limit
)
SELECT newest.*, COALESCE(newest.finished_at, now_s()) - newest.created_at AS seconds,
       COALESCE(done.shards, 0) AS shards, COALESCE(done.shards_done, 0) AS shards_done,
       COALESCE(done.images, 0) + COALESCE(bad.unlisted, 0) AS images,
       COALESCE(done.looked_at, 0) + COALESCE(bad.unlisted, 0) AS looked_at,
       COALESCE(done.embedded, 0) AS embedded, COALESCE(done.reused, 0) AS reused,
       COALESCE(bad.skipped, 0) AS skipped, COALESCE(bad.warnings, 0) AS warnings,
       COALESCE(done.fetched, 0) AS fetched, COALESCE(done.unchanged, 0) AS unchanged
FROM newest
LEFT JOIN (
    SELECT job_id, SUM(counts) AS shards, SUM(counts * images) AS images,
           SUM(counts * progress) AS looked_at,
           SUM(CASE WHEN kind = 'fetch' THEN 0 ELSE embedded END) AS embedded,
           SUM(CASE WHEN kind = 'fetch' THEN 0 ELSE reused END) AS reused,
           SUM(CASE WHEN kind = 'fetch' THEN embedded ELSE 0 END) AS fetched,
           SUM(CASE WHEN kind = 'fetch' THEN reused ELSE 0 END) AS unchanged,
           SUM(CASE WHEN state = 'done' THEN counts ELSE 0 END) AS shards_done
    FROM (
        SELECT shards.job_id, kind, shards.state, images, progress, embedded, reused,
               CASE WHEN (kind = 'fetch') = (newest.stage = 'fetching') THEN 1 ELSE 0 END AS counts
        FROM shards JOIN newest ON newest.id = shards.job_id
    ) AS counted GROUP BY job_id
) AS done ON done.job_id = newest.id
LEFT JOIN (
    SELECT job_id, SUM(1 - warning) AS skipped, SUM(warning) AS warnings,
           SUM(CASE WHEN n = -1 THEN 1 - warning ELSE 0 END) AS unlisted  -- in no shard
    FROM failures WHERE job_id IN (SELECT id FROM newest) GROUP BY job_id
) AS bad ON bad.job_id = newest.id
ORDER BY newest.sequence DESC, newest.created_at DESC, newest.id DESC;

-- name: get_progress
-- Of a job that fetches, the shards of addresses count; afterwards those of images.
SELECT done.shards, done.shards_done, done.images + bad.unlisted AS images,
       done.looked_at + bad.unlisted AS looked_at, done.embedded, done.reused,
       bad.skipped, bad.warnings, done.fetched, done.unchanged
FROM (
    SELECT COALESCE(SUM(counts), 0) AS shards, COALESCE(SUM(counts * images), 0) AS images,
           COALESCE(SUM(counts * progress), 0) AS looked_at,
           COALESCE(SUM(CASE WHEN kind = 'fetch' THEN 0 ELSE embedded END), 0) AS embedded,
           COALESCE(SUM(CASE WHEN kind = 'fetch' THEN 0 ELSE reused END), 0) AS reused,
           COALESCE(SUM(CASE WHEN kind = 'fetch' THEN embedded ELSE 0 END), 0) AS fetched,
           COALESCE(SUM(CASE WHEN kind = 'fetch' THEN reused ELSE 0 END), 0) AS unchanged,
           COALESCE(SUM(CASE WHEN state = 'done' THEN counts ELSE 0 END), 0) AS shards_done
    FROM (
        SELECT kind, shards.state, images, progress, embedded, reused,
               CASE WHEN (kind = 'fetch') = (COALESCE(jobs.stage, '') = 'fetching')
                    THEN 1 ELSE 0 END AS counts
        FROM shards LEFT JOIN jobs ON jobs.id = shards.job_id WHERE shards.job_id = :job_id
    ) AS counted
) AS done, (
    SELECT COALESCE(SUM(1 - warning), 0) AS skipped, COALESCE(SUM(warning), 0) AS warnings,
           COALESCE(SUM(CASE WHEN n = -1 THEN 1 - warning ELSE 0 END), 0) AS unlisted
    FROM failures WHERE job_id = :job_id
) AS bad;

-- name: sum_timings
SELECT COALESCE(SUM(read_s), 0) AS read_s, COALESCE(SUM(decode_s), 0) AS decode_s,
       COALESCE(SUM(cut_out_s), 0) AS cut_out_s, COALESCE(SUM(embed_s), 0) AS embed_s,
       COALESCE(SUM(write_s), 0) AS write_s
FROM shard_timings WHERE job_id = :job_id;

-- name: list_failures
SELECT path, stage, reason, warning FROM failures WHERE job_id = :job_id ORDER BY path, warning;

-- name: list_jobs_created_after
-- Clocks decide only about a job of the last release, which has no place in the sequence.
SELECT later.id, later.index_version FROM jobs AS later JOIN jobs AS this ON this.id = :job_id
WHERE CASE WHEN later.sequence > 0 AND this.sequence > 0 THEN later.sequence > this.sequence
           ELSE later.created_at > this.created_at END;

-- name: list_referenced_versions
SELECT DISTINCT base_version FROM jobs WHERE finished_at IS NULL AND base_version IS NOT NULL;

-- name: set_fingerprint
UPDATE jobs SET fingerprint = :fingerprint, fingerprint_summary = :summary
WHERE id = :job_id AND fingerprint IS NULL;

-- name: set_waiting_reason
UPDATE jobs SET error = :reason WHERE id = :job_id AND finished_at IS NULL;

-- name: add_refusal
INSERT INTO refusals (job_id, worker, first_at, last_at) VALUES (:job_id, :worker, now_s(), now_s())
ON CONFLICT (job_id, worker) DO UPDATE SET last_at = excluded.last_at;

-- name: get_refusals
SELECT worker, now_s() - first_at AS since_s, last_at >= now_s() - :within_s AS counts
FROM refusals WHERE job_id = :job_id;

-- name: delete_refusals
DELETE FROM refusals WHERE job_id = :job_id;

-- name: fail_refused_job
UPDATE jobs SET state = 'failed', error = :error, finished_at = now_s(), lease_until = 0
WHERE id = :job_id AND finished_at IS NULL
  AND NOT EXISTS (SELECT 1 FROM shards
                  WHERE job_id = :job_id AND state = 'running' AND lease_until BETWEEN now_s() AND now_s() + 7200)
RETURNING id;

-- name: end_job
UPDATE jobs SET state = :state, index_version = :version, error = :error, finished_at = now_s(),
                lease_until = 0
WHERE id = :job_id AND finished_at IS NULL RETURNING id;

-- name: record_late_publication
UPDATE jobs SET state = 'published', index_version = :version, error = NULL
WHERE id = :job_id AND state IN ('cancelled', 'failed') RETURNING id;

-- name: drop_items
UPDATE shards SET items = '[]'
WHERE items <> '[]' AND job_id IN (SELECT id FROM jobs WHERE finished_at IS NOT NULL);

-- name: list_ended_jobs
-- Newest first, with the rows below each. Not those whose order still decides which index is newer
-- (created after the oldest open job), nor those that a worker has not let
-- go of, nor those whose end has still to be told.
SELECT jobs.id,
       (SELECT COUNT(*) FROM shards WHERE job_id = jobs.id)
       + (SELECT COUNT(*) FROM failures WHERE job_id = jobs.id) AS n_rows
FROM jobs
WHERE finished_at IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM jobs AS older WHERE older.finished_at IS NULL
                  AND (older.sequence < jobs.sequence OR older.created_at <= jobs.created_at))
  AND NOT EXISTS (SELECT 1 FROM shards WHERE job_id = jobs.id AND state = 'running'
                  AND lease_until BETWEEN now_s() AND now_s() + 7200)
  AND NOT EXISTS (SELECT 1 FROM webhooks WHERE job_id = jobs.id AND state = 'pending')
ORDER BY sequence DESC, created_at DESC, id DESC;

-- name: count_images
SELECT (SELECT COALESCE(SUM(embedded), 0) FROM shards WHERE kind <> 'fetch') AS embedded,
       (SELECT COALESCE(SUM(reused), 0) FROM shards WHERE kind <> 'fetch') AS reused,
       (SELECT COUNT(*) FROM failures WHERE warning = 0) AS skipped,
       (SELECT COUNT(*) FROM failures WHERE warning = 1) AS warnings;

-- name: get_job_request
SELECT digest, job_id FROM job_requests WHERE client = :client AND key = :key;

-- name: add_job_request
INSERT INTO job_requests (client, key, digest, job_id, created_at)
VALUES (:client, :key, :digest, :job_id, now_s()) ON CONFLICT DO NOTHING RETURNING job_id;

-- name: forget_job_requests
DELETE FROM job_requests WHERE created_at < now_s() - 86400;

-- webhooks ------------------------------------------------------------------------------------------

-- name: add_webhook
INSERT INTO webhooks (job_id, url) VALUES (:job_id, :url);

-- name: take_due_webhooks
-- Sent again if its worker does not record an attempt within `lease_s`.
UPDATE webhooks SET next_at = now_s() + :lease_s
WHERE state = 'pending' AND (next_at < now_s() OR next_at > now_s() + 604800)
  AND job_id IN (SELECT id FROM jobs WHERE finished_at IS NOT NULL)
RETURNING job_id;

-- name: get_webhook
SELECT url, state, attempts, error FROM webhooks WHERE job_id = :job_id;

-- name: record_webhook
UPDATE webhooks SET state = :state, attempts = attempts + 1, error = :error,
                    next_at = now_s() + :pause_s
WHERE job_id = :job_id AND state = 'pending';

-- the merge -----------------------------------------------------------------------------------------
-- Not `state <> 'done'`: that reads through all rows that are, after each shard.

-- name: ready_to_merge
SELECT id FROM jobs
WHERE id = :job_id AND plan_done = 1 AND finished_at IS NULL AND (lease_until < now_s() OR lease_until > now_s() + 7200)
  AND NOT EXISTS (SELECT 1 FROM shards
                  WHERE job_id = :job_id AND state IN ('pending', 'queued', 'running'));

-- name: claim_merge
UPDATE jobs SET state = 'merging', owner = :owner, lease_until = now_s() + :lease_s,
                merge_attempts = merge_attempts + 1
WHERE id = :job_id AND plan_done = 1 AND finished_at IS NULL AND (lease_until < now_s() OR lease_until > now_s() + 7200)
  AND NOT EXISTS (SELECT 1 FROM shards
                  WHERE job_id = :job_id AND state IN ('pending', 'queued', 'running'))
RETURNING *, now_s() - created_at AS seconds;

-- name: any_shard_undone
-- In a statement of its own: in PostgreSQL, one that has waited for the row of a job sees the
-- shards as they were before.
SELECT 1 AS one FROM shards
WHERE job_id = :job_id AND state IN ('pending', 'queued', 'running') LIMIT 1;

-- name: release_merge
UPDATE jobs SET lease_until = now_s() + :pause_s, merge_attempts = merge_attempts - :uncounted
WHERE id = :job_id AND owner = :owner AND state = 'merging' AND finished_at IS NULL RETURNING id;

-- name: renew_merge_leases
UPDATE jobs SET lease_until = now_s() + :lease_s
FROM json_each(:progress_by_owner) AS held
WHERE owner = held.key AND state = 'merging' RETURNING owner;

-- the images of a feed ------------------------------------------------------------------------------

-- name: start_fetching
UPDATE jobs SET stage = 'fetching', lease_until = 0 WHERE id = :job_id;

-- name: ready_to_plan
SELECT id FROM jobs
WHERE id = :job_id AND stage = 'fetching' AND finished_at IS NULL
  AND (lease_until < now_s() OR lease_until > now_s() + 7200)
  AND NOT EXISTS (SELECT 1 FROM shards WHERE job_id = :job_id AND kind = 'fetch'
                  AND state IN ('pending', 'queued', 'running'));

-- name: claim_plan
UPDATE jobs SET owner = :owner, lease_until = now_s() + :lease_s, merge_attempts = merge_attempts + 1
WHERE id = :job_id AND stage = 'fetching' AND finished_at IS NULL
  AND (lease_until < now_s() OR lease_until > now_s() + 7200)
  AND NOT EXISTS (SELECT 1 FROM shards WHERE job_id = :job_id AND kind = 'fetch'
                  AND state IN ('pending', 'queued', 'running'))
RETURNING *, now_s() - created_at AS seconds;

-- name: forget_plan
DELETE FROM shards WHERE job_id = :job_id AND kind <> 'fetch';

-- name: count_shards
SELECT COUNT(*) AS count FROM shards WHERE job_id = :job_id;

-- name: set_base_version
UPDATE jobs SET base_version = :base_version
WHERE id = :job_id AND owner = :owner AND stage = 'fetching' AND finished_at IS NULL RETURNING id;

-- name: release_plan
UPDATE jobs SET lease_until = 0, merge_attempts = merge_attempts - :uncounted
WHERE id = :job_id AND owner = :owner AND stage = 'fetching' AND finished_at IS NULL RETURNING id;

-- name: any_open_feed
SELECT 1 AS one FROM jobs WHERE finished_at IS NULL AND root LIKE 'feed:%' LIMIT 1;

-- name: any_fetching
SELECT 1 AS one FROM jobs WHERE stage = 'fetching' AND finished_at IS NULL LIMIT 1;

-- the plan ------------------------------------------------------------------------------------------

-- name: add_shard
INSERT INTO shards (job_id, n, kind, state, items, images, progress, reused)
VALUES (:job_id, :n, :kind, :state, :items, :images, :reused, :reused);

-- name: add_failure
INSERT INTO failures (job_id, n, path, stage, reason, warning)
VALUES (:job_id, :n, :path, :stage, :reason, :warning) ON CONFLICT DO NOTHING;

-- name: count_shards_on_their_way
SELECT COUNT(*) AS count FROM shards WHERE job_id = :job_id AND state IN ('queued', 'running');

-- name: queue_shards
-- Shards of images that are being planned wait until the plan is whole.
UPDATE shards SET state = 'queued', queued_at = now_s()
WHERE job_id = :job_id AND state = 'pending'
  AND n IN (SELECT n FROM shards WHERE job_id = :job_id AND state = 'pending'
            ORDER BY n LIMIT :limit)
  AND (kind = 'fetch' OR EXISTS (SELECT 1 FROM jobs WHERE id = :job_id AND plan_done = 1))
RETURNING n;

-- a shard's work ------------------------------------------------------------------------------------

-- name: claim_shard
UPDATE shards SET state = 'running', owner = :owner, lease_until = now_s() + :lease_s,
                  attempts = attempts + 1, progress = 0
WHERE job_id = :job_id AND n = :n AND kind = :kind
  AND (state IN ('pending', 'queued') OR (state = 'running' AND (lease_until < now_s() OR lease_until > now_s() + 7200)))
  AND EXISTS (SELECT 1 FROM jobs WHERE id = :job_id AND finished_at IS NULL)
RETURNING items, attempts;

-- name: start_job
UPDATE jobs SET state = 'running' WHERE id = :job_id AND state = 'planned';

-- name: renew_shard_leases
-- The cast through TEXT is for PostgreSQL, whose json_each yields JSON.
UPDATE shards SET lease_until = now_s() + :lease_s,
                  progress = CAST(CAST(held.value AS TEXT) AS INTEGER)
FROM json_each(:progress_by_owner) AS held
WHERE owner = held.key AND state = 'running'
  AND EXISTS (SELECT 1 FROM jobs WHERE jobs.id = shards.job_id AND finished_at IS NULL)
RETURNING owner;

-- name: finish_shard
UPDATE shards SET state = 'done', progress = images, file = :file, sha256 = :sha256,
                  embedded = :embedded, reused = :reused, lease_until = 0
WHERE job_id = :job_id AND n = :n AND state <> 'done'
  AND EXISTS (SELECT 1 FROM jobs WHERE id = :job_id AND finished_at IS NULL)
RETURNING n;

-- name: store_timings
INSERT INTO shard_timings (job_id, n, read_s, decode_s, cut_out_s, embed_s, write_s)
VALUES (:job_id, :n, :read_s, :decode_s, :cut_out_s, :embed_s, :write_s)
ON CONFLICT (job_id, n) DO UPDATE
SET read_s = excluded.read_s, decode_s = excluded.decode_s, cut_out_s = excluded.cut_out_s,
    embed_s = excluded.embed_s, write_s = excluded.write_s;

-- name: delete_failures
DELETE FROM failures WHERE job_id = :job_id AND n = :n;

-- name: clear_waiting_reason
UPDATE jobs SET error = NULL WHERE id = :job_id AND error IS NOT NULL;

-- name: release_shard
UPDATE shards SET state = 'pending', lease_until = 0, progress = 0,
                  attempts = attempts - :uncounted
WHERE job_id = :job_id AND n = :n AND owner = :owner AND state = 'running' RETURNING n;

-- name: reopen_shard
UPDATE shards SET state = 'pending', file = NULL, sha256 = NULL, progress = 0, embedded = 0,
                  reused = 0
WHERE job_id = :job_id AND n = :n AND kind = 'embed' AND state = 'done';

-- name: reopen_job
UPDATE jobs SET state = 'running', lease_until = 0
WHERE id = :job_id AND owner = :owner AND state = 'merging' AND finished_at IS NULL RETURNING id;

-- name: mark_started
INSERT INTO suspects (job_id, n, position, starts) VALUES (:job_id, :n, :position, 1)
ON CONFLICT (job_id, n, position) DO UPDATE SET starts = suspects.starts + 1
RETURNING starts;

-- name: clear_suspect
DELETE FROM suspects WHERE job_id = :job_id AND n = :n AND position = :position;

-- name: list_done_shards
SELECT n, kind, items, file, sha256 FROM shards
WHERE job_id = :job_id AND state = 'done' AND kind <> 'fetch' AND n > :after
ORDER BY n LIMIT :limit;

-- the reconciler ------------------------------------------------------------------------------------

-- name: free_expired_shards
UPDATE shards SET state = 'pending', progress = 0
WHERE job_id = :job_id AND state = 'running' AND (lease_until < now_s() OR lease_until > now_s() + 7200) RETURNING n;

-- name: count_queued_shards
-- Of all open jobs: each should have a message.
SELECT COUNT(*) AS count FROM shards JOIN jobs ON jobs.id = shards.job_id
WHERE jobs.finished_at IS NULL AND shards.state = 'queued' AND shards.kind = :kind;

-- name: requeue_lost_shards
UPDATE shards SET queued_at = now_s()
WHERE job_id = :job_id AND state = 'queued'
  AND (queued_at < now_s() - :older_than_s OR queued_at > now_s() + 60) RETURNING n;
