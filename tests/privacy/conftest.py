from hypothesis import settings

# A busy machine is slow now and then; time is not what these properties are about.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
