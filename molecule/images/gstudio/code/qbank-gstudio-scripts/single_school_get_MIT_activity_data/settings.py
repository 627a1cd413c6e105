"""Where the assessment export finds MongoDB and leaves its results."""

MONGO_DB_PORT = 27017
MONGO_DB_HOST = "127.0.0.1"
OUTPUT_DIR = "/data"
SYNC_DATA_PATH = "/data"
