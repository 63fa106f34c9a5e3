"""What every stage needs: errors, files, params.yaml, paths and the way numbers are shown."""
