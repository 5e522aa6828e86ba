"""Stop: SIGTERM and Ctrl-C end a meta-training where it can be resumed, within bounded time."""

import os
import signal
import threading

GRACE = 20.0  # seconds, from the signal to the end of the episode
# As shells have it; and EX_TEMPFAIL of sysexits.h, "start it again".
CODES = {signal.SIGINT: 128 + signal.SIGINT, signal.SIGTERM: 75}
_WHAT = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM"}


class Stop:
    """The wish to stop a meta-training, once ``take_over`` was called.

    At a signal, ``signal`` is set, also while TensorFlow runs; who calls ``end`` at the next
    episode's end raises what ends the program. An episode that takes longer than ``GRACE``, and a
    second Ctrl-C, end the process at once: what is written is whole at any moment.

    Within a program of the user's, which is not to be ended so, Ctrl-C alone raises the
    KeyboardInterrupt, and a second one raises it as soon as TensorFlow returns. A handler of the
    user's own, and a signal that is ignored, stay as they are; and so do all but in the main
    thread, where alone Python has handlers.
    """

    def __init__(self):
        self.signal = None
        self._before = {}
        self._command = None
        self._num_interrupts = 0
        self._timer = None

    def take_over(self):
        """Takes the signals over from Python, or from a command that they end at once."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        for number in CODES:
            handler = signal.getsignal(number)
            self._command = getattr(handler, "command", self._command)
            usual = (signal.SIG_DFL, signal.default_int_handler)
            if handler in usual or hasattr(handler, "command"):
                self._before[number] = signal.signal(number, self._handle)
        if not self._before:
            return
        receiver, self._sender = os.pipe()
        os.set_blocking(self._sender, False)
        self._fd_before = signal.set_wakeup_fd(self._sender, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(receiver,), daemon=True).start()

    def give_back(self):
        """Gives the signals back."""
        if not self._before:
            return
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self._timer:
            self._timer.cancel()
        os.close(self._sender)  # which ends the thread

    def end(self, episode):
        """Ends the program, which has saved a checkpoint after so many episodes.

        Raises:
            KeyboardInterrupt: by Ctrl-C.
            SystemExit: by SIGTERM, with the code 75.
        """
        number = self.signal or signal.SIGTERM  # None: it came to another worker
        self._say(number, f"after episode {episode}")
        self.give_back()
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(CODES[number])

    def _handle(self, number, frame):
        self._num_interrupts += number == signal.SIGINT
        if self._num_interrupts > 1 and not self._may_exit(signal.SIGINT):
            raise KeyboardInterrupt

    def _watch(self, receiver):
        while byte := os.read(receiver, 1):
            number = byte[0]
            if number not in self._before:
                continue
            if self.signal is None:
                self.signal = signal.Signals(number)
                if self._may_exit(number):
                    self._timer = threading.Timer(GRACE, self._exit)
                    self._timer.daemon = True
                    self._timer.start()
            elif number == signal.SIGINT and self._may_exit(number):
                self._exit()
        os.close(receiver)

    def _may_exit(self, number):
        return self._before.get(number) is not signal.default_int_handler

    def _exit(self):
        self._say(self.signal, "from the last checkpoint")
        os._exit(CODES[self.signal])

    def _say(self, number, where):
        prefix, what = (f"{self._command}: ", "command") if self._command else ("", "call")
        line = f"\n{prefix}{_WHAT[number]}; the same {what} resumes {where}\n"
        os.write(2, line.encode())  # without a lock that another thread may hold
