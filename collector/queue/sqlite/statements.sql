-- Every statement of the queue, by name. Each is one step of SQLite however many events it covers: a step a row would
-- hand the interpreter lock back and forth for each event (measured beside a busy thread: 475,000 events/s became 400).

-- name: add_app
INSERT INTO app (name, next_segment) VALUES (?1, ((SELECT coalesce(max(app), 0) + 1 FROM app) << 40) + 1);

-- name: find_app
SELECT app FROM app WHERE name = ?1;

-- name: load_apps
SELECT name, waiting_events, waiting_bytes,
       (SELECT stamp FROM segment WHERE segment > (app << 40) AND segment < ((app + 1) << 40) ORDER BY segment LIMIT 1),
       dead_bytes
FROM app;

-- name: put_fresh
INSERT INTO fresh (keys, stamp, app, events, lines, crc) VALUES (?1, ?2, ?3, ?4, ?5, ?6);

-- name: known
-- The keys come as one blob of up to a thousand, 24 bytes each: the positions of those that are known.
SELECT group_concat(at / 24) FROM place
WHERE at < length(?1) AND EXISTS (SELECT 1 FROM seen WHERE key = substr(?1, at, 24));

-- name: enter
-- Keys as of `known`; those that are there already stay as they are.
INSERT OR IGNORE INTO seen (key, stamp) SELECT substr(?1, at, 24), ?2 FROM place WHERE at < length(?1);

-- name: enter_new
-- The same; fails, with none entered, where one is there already.
INSERT INTO seen (key, stamp) SELECT substr(?1, at, 24), ?2 FROM place WHERE at < length(?1);

-- name: last_between
SELECT key FROM seen WHERE key > ?1 AND key < ?2 ORDER BY key DESC LIMIT ?3;

-- name: first_above
SELECT min(key) FROM seen WHERE key > ?1;

-- name: has_recent
SELECT 1 FROM recent_keys LIMIT 1;

-- name: recent
SELECT stamp, keys FROM recent_keys;

-- name: oldest_recent
SELECT min(stamp) FROM recent_keys;

-- name: add_recent
INSERT INTO recent_keys (stamp, keys) VALUES (?1, ?2);

-- name: drop_recent
DELETE FROM recent_keys WHERE run = ?1;

-- name: drop_all_recent
DELETE FROM recent_keys;

-- name: add_segment
INSERT INTO segment (segment, stamp, events, lines, crc) SELECT next_segment, ?2, ?3, ?4, ?5 FROM app WHERE app = ?1;

-- name: last_segment
SELECT next_segment - 1 FROM app WHERE app = ?1;

-- name: range_totals
SELECT coalesce(sum(events), 0), coalesce(sum(length(lines) + 1), 0) FROM segment WHERE segment BETWEEN ?1 AND ?2;

-- name: drop_range
DELETE FROM segment WHERE segment BETWEEN ?1 AND ?2;

-- name: cut_segment
UPDATE segment SET events = ?2, lines = ?3, crc = ?4 WHERE segment = ?1;

-- name: bury
INSERT INTO dead (app, buried_ms, reason, line, crc) VALUES (?1, ?2, ?3, ?4, ?5);

-- name: keep
INSERT INTO delivered (app, delivered_ms, events, crc, lines) VALUES (?1, ?2, ?3, ?4, ?5);

-- name: has_kept
SELECT 1 FROM delivered WHERE delivered = (SELECT min(delivered) FROM delivered) AND delivered_ms < ?1;

-- name: drop_kept
-- Of the ?2 oldest, those that were delivered before ?1.
DELETE FROM delivered WHERE delivered_ms < ?1
AND delivered IN (SELECT delivered FROM delivered ORDER BY delivered LIMIT ?2);

-- name: segment_sizes
-- Of the next ?3 segments after ?1 and before ?2: the number of each, how many events it holds, and their bytes.
SELECT group_concat(segment), group_concat(events), group_concat(size)
FROM (SELECT segment, events, length(lines) AS size FROM segment WHERE segment > ?1 AND segment < ?2
      ORDER BY segment LIMIT ?3);

-- name: range_lines
-- The lines of all, and of each its number, stamp, events, how long its lines are, and their checksum, -1 for none.
SELECT CAST(group_concat(lines, char(10)) AS BLOB), group_concat(segment), group_concat(stamp), group_concat(events),
       group_concat(length(lines)), group_concat(coalesce(crc, -1))
FROM (SELECT * FROM segment WHERE segment BETWEEN ?1 AND ?2 ORDER BY segment);

-- name: prune_reach
SELECT key FROM seen WHERE key > ?1 ORDER BY key LIMIT 1 OFFSET ?2;

-- name: prune
-- Received before ?3 (microseconds); stamps are in seconds, or, from before schema version 3, in microseconds.
DELETE FROM seen WHERE key > ?1 AND key <= ?2 AND (stamp < ?3 / 1000000 OR stamp BETWEEN 100000000000 AND ?3 - 1);

-- name: count_pruned
UPDATE pruned SET keys = keys + ?1;

-- name: try_room
-- No app has number 0: no count changes.
INSERT INTO segment (segment, stamp, events, lines) VALUES (0, 0, 0, zeroblob(?1));

-- name: end_trial
DELETE FROM segment WHERE segment = 0;

-- name: remembered
SELECT (SELECT coalesce(sum(stored_events), 0) FROM app) - (SELECT keys FROM pruned);

-- name: dead_reasons
-- Of the latest ?1 dead letters: each reason, how many have it, and when the latest was buried.
SELECT reason, count(*), max(buried_ms) FROM (SELECT reason, buried_ms FROM dead ORDER BY dead DESC LIMIT ?1)
GROUP BY reason ORDER BY count(*) DESC, reason LIMIT ?2;

-- name: latest_dead
SELECT name, buried_ms, reason FROM (SELECT app, buried_ms, reason, dead FROM dead ORDER BY dead DESC LIMIT ?1)
JOIN app USING (app) ORDER BY dead DESC;

-- name: app_stats
SELECT name, waiting_events, waiting_bytes, dead_events, dead_bytes, kept_events,
       (SELECT stamp FROM segment WHERE segment > (app << 40) AND segment < ((app + 1) << 40) ORDER BY segment LIMIT 1)
FROM app ORDER BY name;

-- name: letters
-- Dead letters after number ?1, of app ?2 (NULL: any), whose reason contains ?3 (NULL: any), buried from ?4 to before
-- ?5 (milliseconds), or with number ?6 alone, up to number ?7; at most ?8 of them.
SELECT dead, name, buried_ms, reason, line, dead.crc
FROM dead JOIN app USING (app)
WHERE dead > ?1 AND (?2 IS NULL OR name = ?2) AND (?3 IS NULL OR instr(reason, ?3)) AND buried_ms >= ?4
  AND buried_ms < ?5 AND (?6 IS NULL OR dead = ?6) AND dead <= ?7
ORDER BY dead LIMIT ?8;

-- name: count_letters
SELECT count(*) FROM dead JOIN app USING (app)
WHERE dead > ?1 AND (?2 IS NULL OR name = ?2) AND (?3 IS NULL OR instr(reason, ?3)) AND buried_ms >= ?4
  AND buried_ms < ?5 AND (?6 IS NULL OR dead = ?6) AND dead <= ?7;

-- name: drop_letter
DELETE FROM dead WHERE dead = ?1 AND buried_ms = ?2;

-- name: waiting_after
SELECT segment, name, 0, NULL, lines, segment.crc FROM segment JOIN app ON app = segment >> 40
WHERE segment > ?1 AND (?2 IS NULL OR name = ?2) ORDER BY segment LIMIT ?3;

-- name: kept_after
-- What was delivered from ?4 to before ?5 (milliseconds), after number ?1, of app ?2 (NULL: any).
SELECT delivered, name, delivered_ms, NULL, lines, delivered.crc FROM delivered JOIN app USING (app)
WHERE delivered > ?1 AND (?2 IS NULL OR name = ?2) AND delivered_ms >= ?4 AND delivered_ms < ?5
ORDER BY delivered LIMIT ?3;

-- name: count_kept
SELECT coalesce(sum(events), 0) FROM delivered JOIN app USING (app)
WHERE (?1 IS NULL OR name = ?1) AND delivered_ms >= ?2 AND delivered_ms < ?3;

-- name: drop_delivered
-- The number alone may have come to mean another row: once the table is empty they begin anew.
DELETE FROM delivered WHERE delivered = ?1 AND delivered_ms = ?2;

-- name: newest_letter
SELECT coalesce(max(dead), 0) FROM dead;

-- name: newest_kept
SELECT coalesce(max(delivered), 0) FROM delivered;
