//! The attacks: each a process that strikes at a certain rate until its standard input ends, or it has
//! lived for long enough.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::{ask, job, now};
use crate::honest::{HOSTILE, connect_from, hostile, reset};
use crate::sleep_until;

/// No attack goes on for longer, whatever becomes of the bench.
const LONGEST: Duration = Duration::from_secs(60);

/// An attack.
pub struct Attack {
    pub name: &'static str,
    /// Strikes a second.
    rate: u32,
    /// Connections that are held; then the oldest is let go for each new one.
    held: usize,
    strike: fn(&mut Attacker),
}

pub const ATTACKS: [Attack; 13] = [
    Attack { name: "silent", rate: 3000, held: 3000, strike: Attacker::silence },
    Attack { name: "every-place", rate: 3000, held: 6000, strike: Attacker::silence },
    Attack { name: "come-and-go", rate: 1000, held: 1, strike: Attacker::silence },
    Attack { name: "byte-a-second", rate: 500, held: 500, strike: Attacker::byte },
    Attack { name: "endless-line", rate: 50, held: 1, strike: Attacker::endless_line },
    Attack { name: "endless-message", rate: 5, held: 16, strike: Attacker::endless_message },
    Attack { name: "garbage", rate: 500, held: 1, strike: Attacker::garbage },
    Attack { name: "resets", rate: 300, held: 1, strike: Attacker::resets },
    Attack { name: "pipelined-unread", rate: 20, held: 100, strike: Attacker::pipelines },
    Attack { name: "echo-unread", rate: 20, held: 100, strike: Attacker::deaf_echo },
    Attack { name: "uninvited", rate: 1000, held: 1, strike: Attacker::uninvited },
    Attack { name: "half-open", rate: 1000, held: 3000, strike: Attacker::half_open },
    Attack { name: "wrong-jetons", rate: 1000, held: 1, strike: Attacker::wrong_jeton },
];

struct Attacker {
    control: SocketAddr,
    data: Vec<SocketAddr>,
    strikes: usize,
    most: usize,
    held: VecDeque<TcpStream>,
    /// Has tracked jobs, where the attack wants some to wait.
    tracked: Option<TcpStream>,
}

/// Runs an attack; prints how often it struck.
pub fn run(name: &str, addresses: &[SocketAddr]) {
    let attack = crate::ATTACKS.iter().find(|attack| attack.name == name).unwrap();
    let _ = rustix::process::setpriority_process(None, 19);
    let mut attacker = Attacker {
        control: addresses[0],
        data: addresses[1..].to_vec(),
        strikes: 0,
        most: attack.held,
        held: VecDeque::new(),
        tracked: None,
    };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = std::io::stdin().read(&mut [0]);
            over.store(true, Ordering::SeqCst);
        });
        let until = now() + LONGEST;
        let mut due = now();
        while !over.load(Ordering::SeqCst) && due < until {
            sleep_until(due);
            (attack.strike)(&mut attacker);
            attacker.strikes += 1;
            // Who cannot keep the rate does not catch up.
            due = (due + Duration::from_secs(1) / attack.rate).max(now());
        }
    });
    println!("{}", attacker.strikes);
}

impl Attacker {
    fn connect(&self, to: SocketAddr) -> TcpStream {
        connect_from(hostile(self.strikes), to)
    }

    fn hold(&mut self, stream: TcpStream) {
        self.held.push_back(stream);
        if self.held.len() > self.most
            && let Some(oldest) = self.held.pop_front()
        {
            // A reset leaves no port in TIME_WAIT: attackers would run out of them.
            reset(oldest);
        }
    }

    fn silence(&mut self) {
        let control = self.connect(self.control);
        self.hold(control);
    }

    /// One more byte on each connection in turn.
    fn byte(&mut self) {
        if self.held.len() < self.most {
            let mut control = self.connect(self.control);
            let _ = control.write(b"\n");
            self.hold(control);
            return;
        }
        let index = self.strikes % self.most;
        if self.held[index].write(b"x").is_err() {
            self.held[index] = self.connect(self.control);
        }
    }

    fn endless_line(&mut self) {
        let mut control = self.connect(self.control);
        let _ = control.write_all(&vec![b'x'; 1 << 20]);
        self.hold(control);
    }

    fn exchange(&self, kind: &str) -> TcpStream {
        let port = job(&mut connect_from(HOSTILE, self.control), kind);
        connect_from(HOSTILE, SocketAddr::new(self.control.ip(), port))
    }

    fn endless_message(&mut self) {
        let mut data = self.exchange("requetetype1");
        data.set_nonblocking(true).unwrap();
        let _ = data.write(&vec![b'x'; 1 << 20]);
        self.hold(data);
    }

    fn garbage(&mut self) {
        let to = if self.strikes.is_multiple_of(2) { self.control } else { self.data[0] };
        let mut stream = self.connect(to);
        let seed = self.strikes.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bytes: Vec<u8> =
            (0..1000_usize).map(|index| (seed.wrapping_mul(index | 1) >> 24).to_le_bytes()[0]).collect();
        let _ = stream.write_all(&bytes);
        self.hold(stream);
    }

    fn resets(&mut self) {
        let mut control = connect_from(HOSTILE, self.control);
        match self.strikes % 4 {
            0 => {}
            1 => control.write_all(b"\nech").unwrap(),
            2 => control.write_all(b"suivi nonsense\n").unwrap(),
            _ => {
                let mut data = self.exchange("echo");
                data.write_all(b"x").unwrap();
                reset(data);
            }
        }
        reset(control);
    }

    fn pipelines(&mut self) {
        let mut control = self.connect(self.control);
        control.set_nonblocking(true).unwrap();
        let request = if self.strikes.is_multiple_of(2) { "nonsense\n" } else { "?\n" };
        let requests = request.repeat(100_000);
        let _ = control.write(requests.as_bytes());
        self.hold(control);
    }

    fn deaf_echo(&mut self) {
        let mut data = self.exchange("echo");
        data.set_nonblocking(true).unwrap();
        let _ = data.write(&vec![b'x'; 1 << 20]);
        self.hold(data);
    }

    fn uninvited(&mut self) {
        let data = self.connect(self.data[self.strikes % self.data.len()]);
        self.hold(data);
    }

    /// Sees to it that tracked jobs wait in every secondary.
    fn tracked_jobs_wait(&mut self) {
        // They expire after five seconds.
        if self.strikes.is_multiple_of(1000) {
            let mut control = connect_from(HOSTILE, self.control);
            for _ in 0..2 * self.data.len() {
                ask(&mut control, "suivi echo");
            }
            self.tracked = Some(control);
        }
    }

    fn half_open(&mut self) {
        self.tracked_jobs_wait();
        let mut data = self.connect(self.data[self.strikes % self.data.len()]);
        if self.strikes.is_multiple_of(3) {
            let _ = data.write(b"jeton 0123");
        }
        self.hold(data);
    }

    fn wrong_jeton(&mut self) {
        self.tracked_jobs_wait();
        let mut data = self.connect(self.data[self.strikes % self.data.len()]);
        let _ = data.write_all(format!("jeton {:032x}\n", self.strikes).as_bytes());
        self.hold(data);
    }
}
