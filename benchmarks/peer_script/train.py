"""A plain training script, as one writes it with Hydra and normflows: one run, one process' work, one JSON."""

import json
from pathlib import Path

import hydra
import normflows as nf
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from nfexp.data import make_target
from nfexp.streams import stream


def build(n_flows: int, hidden: list[int]) -> nf.NormalizingFlow:
    """RealNVP as in normflows' example notebook: masked affine layers, s and t networks with a zero last layer."""
    b = torch.tensor([1.0, 0.0])
    flows = []
    for i in range(n_flows):
        s, t = (nf.nets.MLP([2, *hidden, 2], init_zeros=True) for _ in range(2))
        flows.append(nf.flows.MaskedAffineFlow(b if i % 2 == 0 else 1 - b, t, s))
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(2), flows)


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> float:
    torch.manual_seed(cfg.seed)
    target = make_target(cfg.target, noise=cfg.noise[cfg.target], text=None)
    x = target.sample(cfg.n_samples, stream(cfg.seed, "train")).float()
    test = target.sample(cfg.n_test, stream(cfg.seed, "test")).float()
    mean, sd = x.mean(0), x.std(0)
    x = (x - mean) / sd

    model = build(cfg.n_flows, list(cfg.hidden))
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.lr)
    step = 0
    while step < cfg.steps:
        for batch in x[torch.randperm(len(x))].split(cfg.batch_size)[: cfg.steps - step]:
            optimizer.zero_grad()
            loss = model.forward_kld(batch)
            if torch.isfinite(loss):
                loss.backward()
                optimizer.step()
            step += 1

    with torch.no_grad():
        test_nll = (sd.log().sum() - model.log_prob((test - mean) / sd).mean()).item()
    out = Path(HydraConfig.get().runtime.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    record = {"target": cfg.target, "n_flows": cfg.n_flows, "seed": cfg.seed, "test_nll": test_nll}
    (out / "result.json").write_text(json.dumps(record))
    return test_nll


if __name__ == "__main__":
    main()
