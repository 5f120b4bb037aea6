"""The engine behind HTTP: FastAPI's application, and uvicorn that runs it until it has drained."""
