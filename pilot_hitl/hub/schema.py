"""The tables of a session's file. Truth is what is written here; everything in memory can be rebuilt from it."""

VERSION = 6

TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS template (id INTEGER PRIMARY KEY, blob BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS bulk (
    first INTEGER PRIMARY KEY, count INTEGER NOT NULL, template INTEGER NOT NULL, condition INTEGER NOT NULL,
    at REAL NOT NULL, spec BLOB NOT NULL, keys BLOB NOT NULL, bodies BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS note (first INTEGER PRIMARY KEY, notes BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS outcome (
    task INTEGER PRIMARY KEY, state INTEGER NOT NULL, epoch INTEGER NOT NULL, run INTEGER NOT NULL,
    began REAL NOT NULL, ended REAL NOT NULL, pilot INTEGER NOT NULL, node INTEGER NOT NULL, cores TEXT NOT NULL,
    reused INTEGER NOT NULL, failure BLOB, payload BLOB NOT NULL, unpublished TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS outcome_other ON outcome (state, task) WHERE state <> 10;
CREATE TABLE IF NOT EXISTS ended (
    first INTEGER PRIMARY KEY, count INTEGER NOT NULL, done INTEGER NOT NULL, failed INTEGER NOT NULL,
    canceled INTEGER NOT NULL, discarded INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS bound (
    task INTEGER PRIMARY KEY, pilot INTEGER NOT NULL, binding INTEGER NOT NULL, run INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS condition (
    number INTEGER PRIMARY KEY, terms BLOB NOT NULL, probability REAL NOT NULL, truth INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS condition_name (name INTEGER PRIMARY KEY, number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS checkpoint (
    number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, ask BLOB NOT NULL, state INTEGER NOT NULL,
    answer TEXT NOT NULL, record TEXT NOT NULL, opened REAL NOT NULL, deadline REAL NOT NULL,
    generation INTEGER NOT NULL, reopened INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS pilot (
    number INTEGER PRIMARY KEY, description BLOB NOT NULL, state INTEGER NOT NULL, message TEXT NOT NULL,
    began REAL NOT NULL, ended REAL NOT NULL, incarnation INTEGER NOT NULL, keep INTEGER NOT NULL,
    token INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS job (
    pilot INTEGER PRIMARY KEY, job TEXT NOT NULL, lineage INTEGER NOT NULL, successor INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS audit (
    sequence INTEGER PRIMARY KEY, content BLOB NOT NULL, hash BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS answer_id (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS event (sequence INTEGER PRIMARY KEY, at REAL NOT NULL, entry TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS life (
    pilot INTEGER NOT NULL, binding INTEGER NOT NULL, job REAL NOT NULL, began REAL NOT NULL, at REAL NOT NULL,
    final INTEGER NOT NULL, cores INTEGER NOT NULL, faults INTEGER NOT NULL, fault_s REAL NOT NULL, open BLOB NOT NULL,
    PRIMARY KEY (pilot, binding)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS span (
    pilot INTEGER NOT NULL, binding INTEGER NOT NULL, sequence INTEGER NOT NULL, number INTEGER NOT NULL,
    node INTEGER NOT NULL, cores TEXT NOT NULL, began REAL NOT NULL, ended REAL NOT NULL, busy REAL NOT NULL,
    overhead REAL NOT NULL, idle REAL NOT NULL, reserved REAL NOT NULL, account INTEGER NOT NULL,
    condition INTEGER NOT NULL, attempts INTEGER NOT NULL, task INTEGER NOT NULL, epoch INTEGER NOT NULL,
    run INTEGER NOT NULL, failed INTEGER NOT NULL,
    PRIMARY KEY (pilot, binding, sequence, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS service (
    name TEXT PRIMARY KEY, spec BLOB NOT NULL, state INTEGER NOT NULL, message TEXT NOT NULL, at REAL NOT NULL,
    incarnation INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS replica (task INTEGER PRIMARY KEY, service TEXT NOT NULL, number INTEGER NOT NULL);
CREATE TRIGGER IF NOT EXISTS audit_keeps BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER IF NOT EXISTS audit_stays BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
"""

INSERTS = {
    "meta": "INSERT OR REPLACE INTO meta VALUES (?,?)",
    "template": "INSERT OR IGNORE INTO template VALUES (?,?)",
    "bulk": "INSERT OR IGNORE INTO bulk VALUES (?,?,?,?,?,?,?,?)",
    "note": "INSERT OR IGNORE INTO note VALUES (?,?)",
    "outcome": "INSERT OR REPLACE INTO outcome VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
    "joined": "DELETE FROM ended WHERE first>? AND first<?",
    "ended": "INSERT OR REPLACE INTO ended VALUES (?,?,?,?,?,?)",
    "unbound": "DELETE FROM bound WHERE pilot=?",
    "bound": "INSERT OR REPLACE INTO bound VALUES (?,?,?,?)",
    "condition": "INSERT OR REPLACE INTO condition VALUES (?,?,?,?)",
    "condition_name": "INSERT OR REPLACE INTO condition_name VALUES (?,?)",
    "checkpoint": "INSERT OR REPLACE INTO checkpoint VALUES (?,?,?,?,?,?,?,?,?,?)",
    "pilot": "INSERT OR REPLACE INTO pilot VALUES (?,?,?,?,?,?,?,?,?)",
    "job": "INSERT OR REPLACE INTO job VALUES (?,?,?,?)",
    "audit": "INSERT INTO audit (content, hash) VALUES (?,?)",
    "answer_id": "INSERT OR IGNORE INTO answer_id VALUES (?)",
    "service": "INSERT OR REPLACE INTO service VALUES (?,?,?,?,?,?)",
    "replica": "INSERT OR REPLACE INTO replica VALUES (?,?,?)",
    "event": "INSERT INTO event (at, entry) VALUES (?,?)",
    "life": "INSERT OR REPLACE INTO life VALUES (?,?,?,?,?,?,?,?,?,?)",
    "span": "INSERT OR IGNORE INTO span VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
}
"""How a row of each table is written, in the order in which a commit writes them."""
