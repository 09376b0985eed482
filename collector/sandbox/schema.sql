-- What the sandbox knows. Columns named json hold what was sent or seeded, as the contract's models have it.

CREATE TABLE app (
  app_id          TEXT PRIMARY KEY,
  app_name        TEXT NOT NULL,
  profile         BLOB NOT NULL,  -- JSON: what app summaries and details say besides what was pushed
  received        INTEGER NOT NULL DEFAULT 0,
  distinct_events INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE request (  -- of apps that do not exist, too
  app_id   TEXT PRIMARY KEY,
  requests INTEGER NOT NULL
) STRICT;

-- Nothing else is kept of an event: what is said about usage is counted when it is asked for, along this key.
CREATE TABLE event (
  app_id TEXT NOT NULL, timestamp INTEGER NOT NULL, email TEXT NOT NULL, event_name TEXT NOT NULL, json BLOB NOT NULL,
  PRIMARY KEY (app_id, timestamp, email, event_name)
) STRICT, WITHOUT ROWID;

CREATE TABLE user (
  user   INTEGER PRIMARY KEY,  -- the order in which they were sent
  app_id TEXT NOT NULL,
  email  TEXT NOT NULL,
  json   BLOB NOT NULL,
  UNIQUE (app_id, email)
) STRICT;

CREATE TABLE spend (
  spend       INTEGER PRIMARY KEY,
  app_id      TEXT NOT NULL,
  amount      REAL,
  currency    TEXT,
  day         TEXT,
  description TEXT
) STRICT;
CREATE INDEX spend_of_app ON spend (app_id);

CREATE TABLE person (  -- the org chart
  email TEXT PRIMARY KEY,
  json  BLOB NOT NULL
) STRICT;

CREATE TABLE custom_field (
  name TEXT PRIMARY KEY,  -- empty where none was sent
  json BLOB NOT NULL
) STRICT;

CREATE TABLE upload (  -- the bytes lie beside the database, under their hash
  app_id   TEXT NOT NULL,
  filename TEXT NOT NULL,
  bytes    INTEGER NOT NULL,
  sha256   TEXT NOT NULL,
  PRIMARY KEY (app_id, filename)
) STRICT;

CREATE TABLE workflow (
  workflow_id TEXT PRIMARY KEY,
  json        BLOB NOT NULL
) STRICT;

CREATE TABLE execution (
  workflow_id  TEXT NOT NULL,
  execution_id TEXT NOT NULL,
  start_us     INTEGER,  -- microseconds since the epoch
  summary      BLOB NOT NULL,
  json         BLOB NOT NULL,
  PRIMARY KEY (workflow_id, execution_id)
) STRICT;

CREATE TABLE audit (
  number   INTEGER PRIMARY KEY,
  at_us    INTEGER NOT NULL,  -- microseconds since the epoch
  event_id TEXT NOT NULL UNIQUE,
  json     BLOB NOT NULL
) STRICT;
CREATE INDEX audit_in_order ON audit (at_us, event_id);
