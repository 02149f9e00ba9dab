//! What the operations of a channel fail with.
//!
//! Each operation has an error of its own, with the reasons that it can have. Errors of sends
//! contain the value. All are errors whatever the value is: it need not be `Debug`, and is not
//! shown. An error with fewer reasons converts into those with more, so that `?` works.

use std::error::Error;
use std::fmt;

/// The channel is closed: what [`Chan::send`](super::Chan::send) fails with. Contains the value.
///
/// ```
/// use footbridge::runtime::{Chan, SendError};
/// let channel = Chan::new(1);
/// channel.close();
/// assert_eq!(channel.send("value"), Err(SendError("value")));
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SendError<T>(pub T);

/// Why [`Chan::try_send`](super::Chan::try_send) did not send. Contains the value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TrySendError<T> {
    /// No receiver waits and the buffer is full.
    Full(T),
    /// The channel is closed.
    Closed(T),
}

/// Why [`Chan::send_timeout`](super::Chan::send_timeout) did not send. Contains the value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SendTimeoutError<T> {
    /// No receiver came, and no room in the buffer, within the time.
    Timeout(T),
    /// The channel is closed, or was closed meanwhile.
    Closed(T),
}

/// The channel is closed and empty: what [`Chan::recv`](super::Chan::recv) fails with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecvError;

/// Why [`Chan::try_recv`](super::Chan::try_recv) received nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryRecvError {
    /// No sender waits and the buffer is empty.
    Empty,
    /// The channel is closed and the buffer is empty.
    Closed,
}

/// Why [`Chan::recv_timeout`](super::Chan::recv_timeout) received nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecvTimeoutError {
    /// No value came within the time.
    Timeout,
    /// The channel is closed and the buffer is empty.
    Closed,
}

impl<T> SendError<T> {
    /// The value that was not sent.
    ///
    /// ```
    /// use footbridge::runtime::Chan;
    /// let channel = Chan::new(1);
    /// channel.close();
    /// assert_eq!(channel.send(7).expect_err("closed").into_inner(), 7);
    /// ```
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> TrySendError<T> {
    /// The value that was not sent.
    ///
    /// ```
    /// use footbridge::runtime::Chan;
    /// let channel = Chan::new(0);
    /// assert_eq!(channel.try_send(7).expect_err("no receiver").into_inner(), 7);
    /// ```
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(value) | Self::Closed(value) => value,
        }
    }

    /// Whether the channel was full.
    ///
    /// ```
    /// use footbridge::runtime::Chan;
    /// let channel = Chan::new(1);
    /// channel.send(7)?;
    /// assert!(channel.try_send(8).is_err_and(|error| error.is_full()));
    /// # Ok::<(), footbridge::runtime::SendError<i32>>(())
    /// ```
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full(_))
    }

    /// Whether the channel was closed.
    ///
    /// ```
    /// use footbridge::runtime::Chan;
    /// let channel = Chan::new(1);
    /// channel.close();
    /// assert!(channel.try_send(8).is_err_and(|error| error.is_closed()));
    /// ```
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed(_))
    }
}

impl<T> SendTimeoutError<T> {
    /// The value that was not sent.
    ///
    /// ```
    /// use std::time::Duration;
    /// use footbridge::runtime::Chan;
    /// let channel = Chan::new(0);
    /// let error = channel.send_timeout(7, Duration::from_millis(1)).expect_err("no receiver");
    /// assert_eq!(error.into_inner(), 7);
    /// ```
    pub fn into_inner(self) -> T {
        match self {
            Self::Timeout(value) | Self::Closed(value) => value,
        }
    }

    /// Whether the time was over.
    ///
    /// ```
    /// use std::time::Duration;
    /// use footbridge::runtime::Chan;
    /// let channel = Chan::new(0);
    /// let error = channel.send_timeout(7, Duration::from_millis(1)).expect_err("no receiver");
    /// assert!(error.is_timeout() && !error.is_closed());
    /// ```
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout(_))
    }

    /// Whether the channel was closed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use footbridge::runtime::Chan;
    /// let channel = Chan::new(1);
    /// channel.close();
    /// let error = channel.send_timeout(7, Duration::from_secs(9)).expect_err("closed");
    /// assert!(error.is_closed());
    /// ```
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed(_))
    }
}

impl TryRecvError {
    /// Whether there was no value yet.
    ///
    /// ```
    /// use footbridge::runtime::Chan;
    /// let channel = Chan::<u8>::new(1);
    /// assert!(channel.try_recv().is_err_and(|error| error.is_empty()));
    /// ```
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    /// Whether the channel was closed.
    ///
    /// ```
    /// use footbridge::runtime::Chan;
    /// let channel = Chan::<u8>::new(1);
    /// channel.close();
    /// assert!(channel.try_recv().is_err_and(|error| error.is_closed()));
    /// ```
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed)
    }
}

impl RecvTimeoutError {
    /// Whether the time was over.
    ///
    /// ```
    /// use std::time::Duration;
    /// use footbridge::runtime::Chan;
    /// let channel = Chan::<u8>::new(1);
    /// let error = channel.recv_timeout(Duration::from_millis(1)).expect_err("no sender");
    /// assert!(error.is_timeout());
    /// ```
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout)
    }

    /// Whether the channel was closed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use footbridge::runtime::Chan;
    /// let channel = Chan::<u8>::new(1);
    /// channel.close();
    /// let error = channel.recv_timeout(Duration::from_secs(9)).expect_err("closed");
    /// assert!(error.is_closed());
    /// ```
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed)
    }
}

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SendError(..)")
    }
}

impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}

impl<T> fmt::Debug for SendTimeoutError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timeout(_) => "Timeout(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("send on a closed channel")
    }
}

impl<T> fmt::Display for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "send on a full channel",
            Self::Closed(_) => "send on a closed channel",
        })
    }
}

impl<T> fmt::Display for SendTimeoutError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timeout(_) => "timed out while a send waited for room or a receiver",
            Self::Closed(_) => "send on a closed channel",
        })
    }
}

impl fmt::Display for RecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("receive on a closed and empty channel")
    }
}

impl fmt::Display for TryRecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "receive on an empty channel",
            Self::Closed => "receive on a closed and empty channel",
        })
    }
}

impl fmt::Display for RecvTimeoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timeout => "timed out while a receive waited for a value",
            Self::Closed => "receive on a closed and empty channel",
        })
    }
}

impl<T> Error for SendError<T> {}

impl<T> Error for TrySendError<T> {}

impl<T> Error for SendTimeoutError<T> {}

impl Error for RecvError {}

impl Error for TryRecvError {}

impl Error for RecvTimeoutError {}

impl<T> From<SendError<T>> for TrySendError<T> {
    fn from(SendError(value): SendError<T>) -> Self {
        Self::Closed(value)
    }
}

impl<T> From<SendError<T>> for SendTimeoutError<T> {
    fn from(SendError(value): SendError<T>) -> Self {
        Self::Closed(value)
    }
}

impl From<RecvError> for TryRecvError {
    fn from(RecvError: RecvError) -> Self {
        Self::Closed
    }
}

impl From<RecvError> for RecvTimeoutError {
    fn from(RecvError: RecvError) -> Self {
        Self::Closed
    }
}
