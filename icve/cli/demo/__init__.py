"""The whole story on generated videos, in resumable stages."""
