"""Settings of every test here."""

from hypothesis import HealthCheck, settings

# A busy machine is slow now and then; time is not what these properties are about.
settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy machine")
