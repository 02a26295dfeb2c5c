"""The Docker Engine API 1.45 (docs/docker.md says what of it is supported), a translation onto the engine.

`app.make` is an application of its own for a unix socket of its own: whoever may open it administers, as with Docker.
"""
