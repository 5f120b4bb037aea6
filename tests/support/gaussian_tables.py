"""The exact oracle for tables: for x0 ~ N(0, s2) the best network is linear, so a whole run is linear algebra."""

import numpy as np

from support.textbook_processes import given_over_own, output, own_levels


def network_gains(diffusion, t, data_variance):
    """Output of the exact network for an input of 1, at times t (whole or not)."""
    a, s = own_levels(diffusion, t)
    x = 1 / given_over_own(diffusion, a, s)
    return output(diffusion, x, a * data_variance / (a**2 * data_variance + s**2) * x, a, s)


def run_table(table, diffusion, data_variance=0.25, start_variance=None):
    """Variance of the state after each row, and the linear map of the first state to the last.

    Args:
        table: Without a clip, or with one that is not reached.
        start_variance: Of the first state; that of the table's first level by default.

    Returns:
        (variances [R], gain): the gain is what the first state is multiplied by; noise adds to the variances alone.
    """
    if start_variance is None:
        start_variance = table.alphas[0] ** 2 * data_variance + table.sigmas[0] ** 2
    gains = network_gains(diffusion, table["t"], data_variance)
    # Slots: x, base, p1, p2, p3.
    covariance = np.zeros((5, 5))
    covariance[0, 0] = start_variance
    first = np.zeros(5)
    first[0] = 1.0
    variances = []
    for r in range(len(table)):
        k = {name: values[r] for name, values in table.columns.items()}
        m = np.array([gains[r] * k["ci"] if k["evaluate"] else 0.0, 0, 0, 0, 0])
        unit = np.eye(5)
        pred = k["px"] * unit[0] + k["pm"] * m

        def combine(letter, k=k, m=m, pred=pred, unit=unit):
            total = k[f"{letter}x"] * unit[0] + k[f"{letter}b"] * unit[1] + k[f"{letter}m"] * m + k[f"{letter}0"] * pred
            return total + sum(k[f"{letter}{age}"] * unit[1 + age] for age in (1, 2, 3))

        step = unit.copy()
        step[0] = combine("c")
        if k["save_base"]:
            step[1] = combine("b")
        if k["push"]:
            step[2], step[3], step[4] = pred, unit[2], unit[3]
        covariance = step @ covariance @ step.T
        covariance[0, 0] += k["s"] ** 2
        first = step @ first
        variances.append(covariance[0, 0])
    return np.array(variances), first[0]


def convergence_order(build, diffusion, counts, data_variances=(0.1, 0.25, 0.6, 3.0)):
    """Fitted slope of the error of a run's linear map against the exact flow's, over step counts.

    The error is the largest over several data variances: for a single one the error's leading term may vanish.
    """
    errors = []
    for count in counts:
        table = build(diffusion, int(count))
        worst = 0.0
        for data_variance in data_variances:
            _, gain = run_table(table, diffusion, data_variance)
            spread = table.alphas**2 * data_variance + table.sigmas**2
            worst = max(worst, abs(gain / np.sqrt(spread[-1] / spread[0]) - 1))
        errors.append(worst)
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0], errors


def gaussian_moments(table, diffusion, data_variance):
    """Variance of the state after each row when the network is exact for x0 ~ N(0, data_variance).

    Every row is linear in the state then, so the variance propagates by arithmetic; clip must be off.
    """
    variance, seen = 1.0, []
    abar = dict(zip(diffusion.schedule.timesteps, diffusion.schedule.alphas_cumprod, strict=True))
    for row in range(len(table)):
        a = abar[table["t"][row]]
        total = a * data_variance + 1 - a
        eps = np.sqrt(1 - a) / total
        x0 = np.sqrt(a) * data_variance / total
        outputs = {"eps": eps, "x0": x0, "v": np.sqrt(a) * eps - np.sqrt(1 - a) * x0, "score": -1 / total}
        m = outputs[diffusion.prediction]
        pred = table["px"][row] + table["pm"][row] * m
        gain = table["cx"][row] + table["cm"][row] * m + table["c0"][row] * pred
        variance = gain**2 * variance + table["s"][row] ** 2
        seen.append(variance)
    return np.array(seen)
