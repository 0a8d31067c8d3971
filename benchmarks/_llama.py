"""A llama.cpp model in a process of its own, timed on command: `python _llama.py FILE.gguf THREADS CONTEXT`.

Run by the Python that has `llama-cpp-python`, which need not be ours; imports nothing of ours. Each line on the standard
input is a command, answered by one line: ``decode N`` the seconds of N tokens one by one, ``prefill N`` those of a prompt
of N, ``batch B`` those of one token for each of B sequences, ``logits T T T`` the logits after these tokens. Seconds are
of the wall and of the processor.

With a CONTEXT that is not 0 there is one sequence, of at most so many tokens: ``fill N`` makes its cache hold N tokens and
tells its bytes, ``next N`` is ``decode N`` after them. What fills the cache are copies of the first 512 entries, moved to
their places: to read as many would take time that grows with the square of N.
"""

import ctypes
import sys
import time

import llama_cpp

PIECE = 512  # tokens read at a time


class Runner:
    def __init__(self, path: str, threads: int, context: int):
        llama_cpp.llama_log_set(_quiet, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_load_model_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            sys.exit(f"llama.cpp does not load {path}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_seq_max = (context, 2) if context else (4096 * 16, 16)
        options.n_batch = options.n_ubatch = PIECE
        options.kv_unified = bool(context)  # or each of the two has half of the context
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_new_context_with_model(self.model, options)
        self.vocabulary = llama_cpp.llama_n_vocab(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(PIECE, 0, 1)
        self.place = 0

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.place = 0

    def run(self, tokens, *, sequences=1) -> None:
        """Tokens of one sequence, or one token for each of several; logits of the last or of all."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = self.place + (i if sequences == 1 else 0)
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0 if sequences == 1 else i
            batch.logits[i] = sequences > 1 or i == len(tokens) - 1
        if llama_cpp.llama_decode(self.context, batch):
            sys.exit("llama.cpp does not decode")
        self.place += len(tokens) if sequences == 1 else 1

    def fill(self, length) -> int:
        """Make the cache hold so many tokens, a multiple of PIECE or fewer; its bytes."""
        self.clear()
        self.run([7] * min(length, PIECE))
        memory = llama_cpp.llama_get_memory(self.context)
        size = llama_cpp.llama_state_seq_get_size(self.context, 0)
        piece = (ctypes.c_uint8 * size)()
        llama_cpp.llama_state_seq_get_data(self.context, piece, size, 0)
        while self.place < length:
            if not llama_cpp.llama_state_seq_set_data(self.context, piece, size, 1):
                sys.exit("llama.cpp does not take its own entries")
            llama_cpp.llama_memory_seq_add(memory, 1, 0, -1, self.place)
            llama_cpp.llama_memory_seq_cp(memory, 1, 0, -1, -1)
            llama_cpp.llama_memory_seq_rm(memory, 1, -1, -1)
            self.place += PIECE
        return llama_cpp.llama_state_seq_get_size(self.context, 0)

    def after(self, count) -> str:
        """Tokens after what `fill` has put there, which are forgotten again."""
        place = self.place
        taken = self.timed(lambda: [self.run([7]) for _ in range(count)])
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self.context), 0, place, -1)
        self.place = place
        return taken

    def timed(self, call) -> str:
        wall, processor = time.perf_counter(), time.process_time()
        call()
        return f"{time.perf_counter() - wall} {time.process_time() - processor}"

    def answer(self, command: str, numbers) -> str:
        if command == "fill":
            return str(self.fill(numbers[0]))
        if command == "next":
            return self.after(numbers[0])
        if command == "decode":
            self.clear()
            self.run([1])
            return self.timed(lambda: [self.run([7]) for _ in range(numbers[0])])
        if command == "prefill":
            self.clear()
            return self.timed(lambda: self.run([7] * numbers[0]))
        if command == "batch":
            self.clear()
            self.run([1] * numbers[0], sequences=numbers[0])
            return self.timed(lambda: self.run([7] * numbers[0], sequences=numbers[0]))
        self.clear()
        self.run(numbers)
        logits = llama_cpp.llama_get_logits_ith(self.context, len(numbers) - 1)
        return " ".join(str(logits[i]) for i in range(self.vocabulary))


@llama_cpp.llama_log_callback
def _quiet(level, text, data):
    pass


def main() -> None:
    runner = Runner(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    print("ready", flush=True)
    for line in sys.stdin:
        command, *numbers = line.split()
        print(runner.answer(command, [int(number) for number in numbers]), flush=True)


if __name__ == "__main__":
    main()
