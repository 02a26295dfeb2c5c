"""Images from Dockerfiles. words → dockerfile → planner say what is to be done, all pure; executor does it, with the
engine's sandboxes for RUN and archives made here for COPY and ADD.
"""
