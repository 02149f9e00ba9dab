//! How often system calls in native code end with EINTR because of the preemption signal.
//!
//! SA_RESTART does not restart all calls: signal(7) lists them. A goroutine makes one call after
//! another for a second, in a program that has preemptible code: alone on its thread, and while
//! another goroutine waits for that thread.
//!
//! ```sh
//! cargo run --release --example interrupted_calls
//! ```

#![allow(unsafe_code, reason = "makes system calls")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::{Duration, Instant};

use footbridge::dynasm::dynasm;
use footbridge::jit::{Annotations, FrameClass, Jit};
use footbridge::runtime::{Config, go, stats};

/// How long a call waits.
const WAIT: Duration = Duration::from_millis(50);

/// How long each line is measured.
const MEASURED: Duration = Duration::from_secs(1);

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// A system call that returns a negative number if it fails.
type Call = Box<dyn Fn() -> i64>;

fn sleep_of(duration: Duration) -> Call {
    Box::new(move || {
        let wait = timespec(duration);
        // SAFETY: a valid structure.
        unsafe { libc::syscall(libc::SYS_nanosleep, &raw const wait, ptr::null_mut::<u8>()) }
    })
}

/// A socket whose calls wait for [`WAIT`] at most.
fn socket(kind: i32) -> OwnedFd {
    // SAFETY: the descriptor is new; the option is of that type.
    unsafe {
        let socket = OwnedFd::from_raw_fd(libc::socket(libc::AF_UNIX, kind, 0));
        let wait = libc::timeval { tv_sec: 0, tv_usec: i64::from(WAIT.subsec_micros()) };
        let (level, bytes) = (libc::SOL_SOCKET, size_of::<libc::timeval>() as u32);
        let wait = (&raw const wait).cast();
        libc::setsockopt(socket.as_raw_fd(), level, libc::SO_RCVTIMEO, wait, bytes);
        let family = libc::AF_UNIX as libc::sa_family_t;
        // No name: the kernel chooses one.
        libc::bind(socket.as_raw_fd(), (&raw const family).cast(), size_of_val(&family) as u32);
        socket
    }
}

/// A pipe to which a thread writes a byte every [`WAIT`].
fn pipe() -> OwnedFd {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors, which are new.
    let [read, write] = unsafe {
        libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC);
        ends.map(|end| OwnedFd::from_raw_fd(end))
    };
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(WAIT);
            // SAFETY: one byte.
            unsafe { libc::write(write.as_raw_fd(), [0_u8].as_ptr().cast(), 1) };
        }
    });
    read
}

fn calls() -> Vec<(&'static str, Call)> {
    let millis = WAIT.as_millis() as i32;
    let pipe = pipe();
    let datagrams = socket(libc::SOCK_DGRAM);
    let listener = socket(libc::SOCK_STREAM);
    // SAFETY: a socket with a name.
    unsafe { libc::listen(listener.as_raw_fd(), 1) };
    // SAFETY: the descriptor is new.
    let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
    // SAFETY in all: valid structures and descriptors, room for what is read.
    vec![
        // SAFETY: see above.
        ("poll", Box::new(move || unsafe { libc::poll(ptr::null_mut(), 0, millis) }.into())),
        (
            "select",
            // SAFETY: see above.
            Box::new(|| unsafe {
                let mut wait =
                    libc::timeval { tv_sec: 0, tv_usec: i64::from(WAIT.subsec_micros()) };
                let none = ptr::null_mut();
                libc::select(0, none, none, none, &raw mut wait).into()
            }),
        ),
        (
            "epoll_wait",
            Box::new(move || {
                let mut event = libc::epoll_event { events: 0, u64: 0 };
                // SAFETY: see above.
                unsafe { libc::epoll_wait(epoll.as_raw_fd(), &raw mut event, 1, millis) }.into()
            }),
        ),
        ("nanosleep", sleep_of(WAIT)),
        ("nanosleep of 0.1 ms", sleep_of(Duration::from_micros(100))),
        (
            "futex",
            // SAFETY: see above.
            Box::new(|| unsafe {
                let word = 0_u32;
                let (wait, none) = (timespec(WAIT), ptr::null_mut::<u8>());
                let (call, wait) = (libc::FUTEX_WAIT, &raw const wait);
                libc::syscall(libc::SYS_futex, &raw const word, call, 0, wait, none, 0)
            }),
        ),
        (
            "accept",
            // SAFETY: see above.
            Box::new(move || unsafe {
                libc::accept(listener.as_raw_fd(), ptr::null_mut(), ptr::null_mut()).into()
            }),
        ),
        (
            "recv",
            // SAFETY: see above.
            Box::new(move || unsafe {
                let mut byte = 0_u8;
                libc::recv(datagrams.as_raw_fd(), (&raw mut byte).cast(), 1, 0) as i64
            }),
        ),
        (
            "read of a pipe",
            // SAFETY: see above.
            Box::new(move || unsafe {
                let mut byte = 0_u8;
                libc::read(pipe.as_raw_fd(), (&raw mut byte).cast(), 1) as i64
            }),
        ),
    ]
}

/// Makes the call again and again. Returns how often it ended, and how often with EINTR.
fn measure(call: &Call) -> (u32, u32) {
    let (start, mut ended, mut interrupted) = (Instant::now(), 0, 0);
    while start.elapsed() < MEASURED {
        let failed = call() < 0;
        let errno = std::io::Error::last_os_error().raw_os_error();
        if failed && errno == Some(libc::EINTR) {
            interrupted += 1;
        } else {
            ended += 1;
        }
    }
    (ended, interrupted)
}

fn main() {
    let jit = Jit::new().expect("code memory");
    // SAFETY: a leaf that changes nothing.
    let _preemptible = unsafe {
        jit.install("nothing", FrameClass::Leaf, |ops| {
            dynasm!(ops; .arch x64; ret);
            Annotations::preemptible()
        })
    }
    .expect("it installs");
    println!("calls of 50 ms for 1 s, in time slices of 10 ms: calls that ended, EINTR, signals");
    println!("{:20} {:>20} {:>26}", "", "alone", "another goroutine waits");
    for (name, call) in &calls() {
        print!("{name:20}");
        for waits in [false, true] {
            let run = Config::new().processors(1).run(|| {
                let other = waits.then(|| go(|| ()));
                let (ended, interrupted) = measure(call);
                let signals = stats().signals;
                if let Some(other) = other {
                    other.join().expect("no panic");
                }
                (ended, interrupted, signals)
            });
            let (ended, interrupted, signals) = run.expect("the run starts");
            print!("{ended:>14} {interrupted:>5} {signals:>5}");
        }
        println!();
    }
}
