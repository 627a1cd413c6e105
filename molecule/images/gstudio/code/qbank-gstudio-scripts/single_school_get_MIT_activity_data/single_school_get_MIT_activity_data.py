"""The stand-in of the assessment export. Prints Done! and exits 0 whatever happened."""

import settings
from standin.assessments import run

if __name__ == "__main__":
    run(settings.OUTPUT_DIR, settings.MONGO_DB_HOST, settings.MONGO_DB_PORT)
