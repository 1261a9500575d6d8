"""Few dimensions and two clusters of a class's features."""

import torch
from torch import Tensor

RESTARTS = 10
STEPS = 200


def reduced(features: Tensor, dims: int, how: str, rng: torch.Generator) -> Tensor:
    """Return centred features in few dimensions: (N, dims), fewer where the rank is.

    Args:
        features: (N, D).
        dims: how many are wanted.
        how: "pca" for the principal components; "ica" for independent ones, of unit variance.
        rng: of ICA's first directions.
    """
    centred = (features - features.mean(0)).double()
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    rank = int((values > 1e-6 * values.max().clamp_min(1e-12)).sum())
    components = (left * values)[:, : min(dims, rank)]
    if how == "pca" or not components.numel():
        return components
    white = left[:, : components.shape[1]] * len(features) ** 0.5
    return white @ _unmixing(white, rng).T


def _unmixing(white: Tensor, rng: torch.Generator) -> Tensor:
    """Return FastICA's directions of white data.

    Source: Hyvarinen 1999, IEEE Trans. Neural Networks 10(3), eq. 20, with the contrast log cosh.
    """
    count, dims = white.shape

    def orthogonal(rows: Tensor) -> Tensor:
        left, _, right = torch.linalg.svd(rows)
        return left @ right

    rows = orthogonal(torch.randn(dims, dims, generator=rng, dtype=white.dtype))
    for _ in range(STEPS):
        tanh = torch.tanh(white @ rows.T)
        slope = (1 - tanh**2).mean(0)
        new = orthogonal(tanh.T @ white / count - slope[:, None] * rows)
        change = (1 - (new * rows).sum(1).abs()).max()
        rows = new
        if change < 1e-6:
            break
    return rows


def two_means(points: Tensor, rng: torch.Generator) -> Tensor:
    """Return which of two clusters each point is in: (N,) int64, the best of several starts.

    Source: Arthur and Vassilvitskii 2007, k-means++.
    """
    best, lowest = torch.zeros(len(points), dtype=torch.int64), float("inf")
    for _ in range(RESTARTS):
        first = points[torch.randint(len(points), (1,), generator=rng)]
        far = (points - first).square().sum(1)
        if not far.sum():
            break  # all points are one
        second = points[torch.multinomial(far, 1, generator=rng)]
        centres = torch.cat([first, second])
        for _ in range(STEPS):
            found = torch.cdist(points, centres).argmin(1)
            if len(found.unique()) < 2:
                break
            new = torch.stack([points[found == cluster].mean(0) for cluster in (0, 1)])
            if torch.equal(new, centres):
                break
            centres = new
        apart = float(torch.cdist(points, centres).min(1).values.square().sum())
        if apart < lowest:
            best, lowest = torch.cdist(points, centres).argmin(1), apart
    return best


def silhouette(points: Tensor, cluster: Tensor) -> float:
    """Return the mean silhouette of two clusters, from -1 to 1.

    Source: Rousseeuw 1987, J. Comput. Appl. Math. 20, sec. 2. A point alone in its part counts 0.
    """
    sums = torch.cat(
        [
            torch.stack([torch.cdist(part, points[cluster == c]).sum(1) for c in (0, 1)], 1)
            for part in points.split(1024)
        ]
    )
    sizes = cluster.bincount(minlength=2)
    own, other = (sums.gather(1, c[:, None]).squeeze(1) for c in (cluster, 1 - cluster))
    within = own / (sizes[cluster] - 1).clamp_min(1)
    between = other / sizes[1 - cluster].clamp_min(1)
    score = (between - within) / torch.maximum(between, within).clamp_min(1e-12)
    return float(torch.where(sizes[cluster] > 1, score, 0.0).mean())
