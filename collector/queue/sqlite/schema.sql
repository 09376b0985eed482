-- The queue's tables, version 1. `PRAGMA user_version` holds the version, `application_id` says whose file it is.

-- One row an app, with what waits for it; an event's bytes are those of its line, with the line end. The triggers below keep the counts equal to what is stored, whoever stores
-- it, so that depth is known without counting.
CREATE TABLE app (
  app            INTEGER PRIMARY KEY,
  name           TEXT    NOT NULL UNIQUE,
  next_segment   INTEGER NOT NULL,             -- the number that the next segment takes
  waiting_events INTEGER NOT NULL DEFAULT 0,
  waiting_bytes  INTEGER NOT NULL DEFAULT 0,
  dead_events    INTEGER NOT NULL DEFAULT 0,
  stored_events  INTEGER NOT NULL DEFAULT 0    -- ever; less `pruned.keys` it is the number of keys remembered
) STRICT;

-- Events that wait for delivery, as lines of JSON: one row for up to a batch of events of one app that were committed
-- together. Rows come and go by the thousand events: a row an event was measured at 1.3 times the cost to insert
-- and twice the cost to drain. The number is (app << 40) + n with n rising by one, so that one app's segments lie
-- together, in order, without an index. The small columns stand first: reading them does not touch the lines' pages.
CREATE TABLE segment (
  segment INTEGER PRIMARY KEY,
  stamp   INTEGER NOT NULL,                    -- as in `seen`
  events  INTEGER NOT NULL,
  lines   BLOB    NOT NULL
) STRICT;

CREATE TRIGGER segment_added AFTER INSERT ON segment BEGIN
  UPDATE app SET next_segment = NEW.segment + 1, stored_events = stored_events + NEW.events,
                 waiting_events = waiting_events + NEW.events, waiting_bytes = waiting_bytes + length(NEW.lines) + 1
  WHERE app = NEW.segment >> 40;
END;

CREATE TRIGGER segment_cut AFTER UPDATE ON segment BEGIN
  UPDATE app SET waiting_events = waiting_events - OLD.events + NEW.events,
                 waiting_bytes = waiting_bytes - length(OLD.lines) + length(NEW.lines)
  WHERE app = NEW.segment >> 40;
END;

CREATE TRIGGER segment_gone AFTER DELETE ON segment BEGIN
  UPDATE app SET waiting_events = waiting_events - OLD.events, waiting_bytes = waiting_bytes - length(OLD.lines) - 1
  WHERE app = OLD.segment >> 40;
END;

-- Every key received within the retention, delivered or not. `stamp` is the receipt in microseconds since the epoch.
-- No index by stamp: pruning walks the keys in small steps instead, which costs live inserts nothing.
CREATE TABLE seen (
  key   BLOB    NOT NULL PRIMARY KEY,
  stamp INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- A put of events that are all new and of one app, as one statement: `INSERT INTO fresh`. It fails, with nothing stored,
-- if any of the keys is known. Much traffic is of this kind, and each statement of a transaction costs beside a busy
-- interpreter as much as the insert itself (see store.py).
CREATE VIEW fresh (keys, stamp, app, events, lines) AS SELECT NULL, NULL, NULL, NULL, NULL;

CREATE TRIGGER fresh_put INSTEAD OF INSERT ON fresh BEGIN
  INSERT INTO seen (key, stamp)
  WITH RECURSIVE place (at) AS (SELECT 1 UNION ALL SELECT at + 24 FROM place WHERE at + 24 < length(NEW.keys))
  SELECT substr(NEW.keys, at, 24), NEW.stamp FROM place;
  INSERT INTO segment (segment, stamp, events, lines)
  SELECT next_segment, NEW.stamp, NEW.events, NEW.lines FROM app WHERE app = NEW.app;
END;

-- One row: how many keys were forgotten. Apart from `app`, so that storing events writes one page less.
CREATE TABLE pruned (
  keys INTEGER NOT NULL
) STRICT;
INSERT INTO pruned (keys) VALUES (0);

-- Events that upstream refused for good, each with its reason.
CREATE TABLE dead (
  dead      INTEGER PRIMARY KEY AUTOINCREMENT,
  app       INTEGER NOT NULL REFERENCES app (app),
  buried_ms INTEGER NOT NULL,
  reason    TEXT    NOT NULL,
  line      BLOB    NOT NULL
) STRICT;

CREATE TRIGGER dead_added AFTER INSERT ON dead BEGIN
  UPDATE app SET dead_events = dead_events + 1 WHERE app = NEW.app;
END;
