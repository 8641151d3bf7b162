"""guard.yaml, the operator's file: one module a section. Sections are data; nothing here opens anything."""
