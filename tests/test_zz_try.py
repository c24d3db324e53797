import time
from salon import run
def test_a(mini, mini_root, offline_wandb):
    t=time.time()
    cfg = mini("latent_diffusion/tiny","logger=wandb")
    run.train(cfg, offline_wandb/"run")
    print("TOOK", time.time()-t); t=time.time()
    cfg = mini("latent_diffusion/tiny","logger=csv")
    run.train(cfg, offline_wandb/"run2")
    print("TOOK2", time.time()-t); t=time.time()
    import subprocess
    print(subprocess.run(f"find {mini_root}/stages {offline_wandb} | grep -v '/data/' ; cat {offline_wandb}/run2/metrics.csv; ls -la ~/.local/share ~/.cache/wandb ~/.config/wandb; env | grep -i wandb", shell=True, capture_output=True,text=True).stdout)
