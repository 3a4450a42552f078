"""The browser script: its source, its build, and in `bundle/` what `GET /sidecar.js` answers with."""
