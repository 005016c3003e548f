//! Connections without a pause, of which none may fail.

use crate::world::Mesh;

/// One connection after the other from a pod, until it is ended.
pub struct Load {
    pod: String,
    name: String,
}

impl Mesh {
    pub fn load(&self, pod: &str, name: &str, address: &str, port: u16) -> Load {
        let script = format!(
            r"(while [ ! -e /stop-{name} ]; do
                 (exec 3<>/dev/tcp/{address}/{port} && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && read -r line <&3 &&
                   cat <&3 >/dev/null && [[ $line == *200* ]]) && echo ok || printf 'failed at %(%T)T\n' -1
               done >/load-{name} 2>/errors-{name}) >/dev/null 2>&1 &"
        );
        self.exec(pod, &script).unwrap();
        Load { pod: pod.to_owned(), name: name.to_owned() }
    }

    /// How many connections there were, of which none has failed.
    pub fn ends_well(&self, load: &Load) -> usize {
        let Load { pod, name } = load;
        self.exec(pod, &format!("echo >/stop-{name}")).unwrap();
        let said = self.exec(pod, &format!("cat /load-{name} /errors-{name}")).unwrap();
        let ok = said.lines().filter(|l| *l == "ok").count();
        let failed: Vec<&str> = said.lines().filter(|l| *l != "ok").collect();
        println!("{name}: {ok} connections, {} complaints", failed.len());
        assert!(ok > 50 && failed.is_empty(), "{name}: {ok} ok; {failed:#?}\n{}", self.state());
        ok
    }
}
