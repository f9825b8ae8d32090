"""HTTP and WebSocket at the edge. Translates between the wire and the pipeline; decides nothing."""
