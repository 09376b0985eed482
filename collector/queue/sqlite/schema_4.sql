-- Version 4: keys that come in disorder wait for a while before they enter `seen`.

-- Keys of one put, 24 bytes each: a key is known that stands here or in `seen`, or in both. `stamp` is as in `seen`. Rows
-- are there only while one process enters such keys (see recent_keys.py), or where it died amid that.
CREATE TABLE recent_keys (
  run   INTEGER PRIMARY KEY,
  stamp INTEGER NOT NULL,
  keys  BLOB    NOT NULL
) STRICT;
