-- Version 2: checksums beside what waits, the size of dead letters, delivered events that are kept for a while.

-- CRC-32 over the app's name and what stands in the row (see soundness.py); NULL in rows of version 1. SQLite has no
-- checksums of its own: a bit that a disk flips inside a line would go upstream as an event that nobody sent.
ALTER TABLE segment ADD COLUMN crc INTEGER;
ALTER TABLE dead ADD COLUMN crc INTEGER;

-- Bytes of dead letters: each line with its line end, and its reason.
ALTER TABLE app ADD COLUMN dead_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE app ADD COLUMN kept_events INTEGER NOT NULL DEFAULT 0;

UPDATE app SET dead_bytes = (
  SELECT coalesce(sum(length(line) + 1 + length(CAST(reason AS BLOB))), 0) FROM dead WHERE dead.app = app.app
);

DROP TRIGGER dead_added;
CREATE TRIGGER dead_added AFTER INSERT ON dead BEGIN
  UPDATE app SET dead_events = dead_events + 1,
                 dead_bytes = dead_bytes + length(NEW.line) + 1 + length(CAST(NEW.reason AS BLOB))
  WHERE app = NEW.app;
END;
CREATE TRIGGER dead_gone AFTER DELETE ON dead BEGIN
  UPDATE app SET dead_events = dead_events - 1,
                 dead_bytes = dead_bytes - length(OLD.line) - 1 - length(CAST(OLD.reason AS BLOB))
  WHERE app = OLD.app;
END;

DROP TRIGGER fresh_put;
DROP VIEW fresh;
CREATE VIEW fresh (keys, stamp, app, events, lines, crc) AS SELECT NULL, NULL, NULL, NULL, NULL, NULL;
CREATE TRIGGER fresh_put INSTEAD OF INSERT ON fresh BEGIN
  INSERT INTO seen (key, stamp)
  WITH RECURSIVE place (at) AS (SELECT 1 UNION ALL SELECT at + 24 FROM place WHERE at + 24 < length(NEW.keys))
  SELECT substr(NEW.keys, at, 24), NEW.stamp FROM place;
  INSERT INTO segment (segment, stamp, events, lines, crc)
  SELECT next_segment, NEW.stamp, NEW.events, NEW.lines, NEW.crc FROM app WHERE app = NEW.app;
END;

-- What was delivered, while queue.keep_delivered lasts: one row for what one lease delivered. Nothing that puts or
-- leases reads it. Rows rise with time, so that the oldest are the first.
CREATE TABLE delivered (
  delivered    INTEGER PRIMARY KEY,
  app          INTEGER NOT NULL REFERENCES app (app),
  delivered_ms INTEGER NOT NULL,
  events       INTEGER NOT NULL,
  crc          INTEGER NOT NULL,
  lines        BLOB    NOT NULL
) STRICT;

CREATE TRIGGER delivered_added AFTER INSERT ON delivered BEGIN
  UPDATE app SET kept_events = kept_events + NEW.events WHERE app = NEW.app;
END;
CREATE TRIGGER delivered_gone AFTER DELETE ON delivered BEGIN
  UPDATE app SET kept_events = kept_events - OLD.events WHERE app = OLD.app;
END;
