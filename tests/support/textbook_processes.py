"""What a network of each process is given and should say, in the process's own x = a x_0 + s z, as papers have it.

Nothing here knows of variance-preserving states: a and s are told from the network's time by each paper's formula.
"""

import numpy as np

from fastdiff import Diffusion, NoiseSchedule

PROCESSES = {
    "vp": Diffusion(NoiseSchedule.linear(1000), "eps"),
    "cosine": Diffusion(NoiseSchedule.cosine(1000), "v"),
    "edm": Diffusion(NoiseSchedule.edm(1000), "F"),
    "exploding": Diffusion(NoiseSchedule.variance_exploding(1000), "score"),
    "flow": Diffusion(NoiseSchedule.flow(1000), "velocity"),
    "shifted": Diffusion(NoiseSchedule.flow(1000, shift=3.0, time_scale=1.0), "velocity"),
    "vdm": Diffusion(NoiseSchedule.vdm(1000), "eps"),
    "listed": Diffusion(
        NoiseSchedule.from_signal_noise(2 - np.linspace(0.01, 1.9, 400), 3 * np.linspace(0.01, 1.9, 400)), "x0"
    ),
}


def own_levels(diffusion, t):
    """(a, s) of the process at the network's times, float64."""
    t, schedule = np.asarray(t, dtype=np.float64), diffusion.schedule
    if schedule.name.startswith("edm"):
        return np.ones_like(t), np.exp(4 * t)
    if schedule.name.startswith("variance_exploding"):
        return np.ones_like(t), t
    if schedule.name.startswith("flow"):
        t = t / schedule.coordinates.time_scale
        return 1 - t, t
    if schedule.name.startswith("vdm"):
        ends = {"log_snr_max": 13.3, "log_snr_min": -5.0} | dict(schedule.options or {})
        high, low = ends["log_snr_max"], ends["log_snr_min"]
        log_snr = high - t * (high - low)
        return np.sqrt(1 / (1 + np.exp(-log_snr))), np.sqrt(1 / (1 + np.exp(log_snr)))
    # Between timesteps log abar is straight.
    log_abar = np.interp(t, schedule.timesteps, schedule.log_alphas_cumprod)
    a, s = np.exp(0.5 * log_abar), np.sqrt(-np.expm1(log_abar))
    if schedule.coordinates.scaling == "listed":
        # a = 2 - u and s = 3 u, on the ray of that angle.
        u = 2 / (1 + 3 * a / s)
        return 2 - u, 3 * u
    return a, s


def given_over_own(diffusion, a, s):
    """What the network's input is of the process's own x: c_in for F, else 1."""
    return 1 / ((a * diffusion.sigma_data) ** 2 + s**2) ** 0.5 if diffusion.prediction == "F" else 1.0


def output(diffusion, x, x0, a, s):
    """What a network says that knows x_0, of the process's own x."""
    eps, sd = (x - a * x0) / s, diffusion.sigma_data
    norm = (a**2 + s**2) ** 0.5
    if diffusion.prediction == "F":
        # Karras et al. (2022), table 1, for y = x / a and sigma = s / a.
        sigma = s / a
        skip, out = sd**2 / (sigma**2 + sd**2), sigma * sd / (sigma**2 + sd**2) ** 0.5
        return (x0 - skip * x / a) / out
    return {
        "eps": eps,
        "x0": x0,
        "v": (a * eps - s * x0) / norm,
        "score": -eps / s,
        "velocity": eps - x0,
    }[diffusion.prediction]
