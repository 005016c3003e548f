//! What an agent does on a node of Kubernetes beside carrying connections: pods that run already join
//! and leave, the control plane hears of it, and culvert-cni is where the node's runtime finds it.

use crate::{agent::Agent, installer::Installer, pods_of_node, reports, scope::spawn_for_agent};
use ::cri::Runtime;
use anyhow::Context as _;
use clap::Args;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::watch;
use xds::ControlPlane;

#[derive(Args)]
pub struct Options {
    /// The container runtime's socket (CRI v1): pods of this node that run already join and leave the
    /// mesh as their records say [default: they are enrolled by others]
    #[arg(long)]
    cri: Option<PathBuf>,
    /// Install culvert-cni into this directory of CNI plugins
    #[arg(long, requires = "cni_conf_dir")]
    cni_bin_dir: Option<PathBuf>,
    /// Keep culvert-cni in the first configuration of this directory
    #[arg(long, requires = "cni_bin_dir")]
    cni_conf_dir: Option<PathBuf>,
    /// A namespace whose pods start whether there is an agent or not: the control plane's own
    #[arg(long = "cni-exclude-namespace")]
    cni_exclude_namespaces: Vec<String>,
    /// The program to install [default: culvert-cni beside this one]
    #[arg(long)]
    cni_program: Option<PathBuf>,
    /// What the file of the kubelet's program is called: no policy counts for the connections of this
    /// node's kubelet to pods (probes)
    #[arg(long, default_value = "kubelet")]
    pub kubelet_program: String,
}

impl Options {
    /// Begins once the agent has taken up its pods, and answers on its sockets.
    pub fn start(
        &self,
        agent: &Arc<Agent>,
        control: ControlPlane,
        run_dir: &Path,
        taken_up: &watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        spawn_for_agent(reports::say_again(agent.clone()));
        spawn_for_agent(reports::tell(agent.clone(), control));
        if let Some(socket) = &self.cri {
            let runtime = Runtime::at(socket)
                .with_context(|| format!("{} (--cri) is no path of a socket", socket.display()))?;
            let (agent, taken_up) = (agent.clone(), taken_up.clone());
            spawn_for_agent(async move {
                if is(taken_up).await {
                    pods_of_node::follow(agent, runtime).await;
                }
            });
        }
        if let Some(installer) = self.installer(run_dir)? {
            let (agent, taken_up) = (agent.clone(), taken_up.clone());
            spawn_for_agent(async move {
                if is(taken_up).await {
                    installer.keep(agent).await;
                }
            });
        }
        Ok(())
    }

    fn installer(&self, run_dir: &Path) -> anyhow::Result<Option<Installer>> {
        let (Some(bin_dir), Some(conf_dir)) = (&self.cni_bin_dir, &self.cni_conf_dir) else {
            return Ok(None);
        };
        let program = match &self.cni_program {
            Some(program) => program.clone(),
            None => std::env::current_exe()
                .context("finding culvert-cni beside this program: name it by --cni-program")?
                .with_file_name("culvert-cni"),
        };
        Ok(Some(Installer {
            bin_dir: bin_dir.clone(),
            conf_dir: conf_dir.clone(),
            program,
            run_dir: run_dir.to_owned(),
            exclude_namespaces: self.cni_exclude_namespaces.clone(),
        }))
    }
}

async fn is(mut taken_up: watch::Receiver<bool>) -> bool {
    taken_up.wait_for(|t| *t).await.is_ok()
}
