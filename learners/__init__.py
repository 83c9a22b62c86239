"""Learners: data, training and the job directory. They know nothing of the gateway or its database."""
