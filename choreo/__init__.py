"""choreo: sagas over Kafka by event choreography."""
