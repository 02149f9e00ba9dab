// The Go side of the comparison: the workloads of ../src/workloads.rs in Go.
//
// It is a server, so that its runs and footbridge's can alternate. A request is a line on standard
// input:
//
//	WORKLOAD NUMBER PROCESSORS ITERATIONS
//
// The answer is a line on standard output with the nanoseconds of ITERATIONS iterations. NUMBER is
// the number of goroutines, of pairs, or of goroutines in a batch. Two requests have other answers:
// "version", and "threads" followed by a request (see answer). Started with "parked COUNT", the
// program parks COUNT goroutines, prints what they cost, and exits.
//
// The program uses no cgo and only the standard library. It exits when a result is wrong. Loop
// variables are copied for compilers before Go 1.22.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "parked" {
		parked(number(os.Args[2]))
		return
	}
	requests := bufio.NewScanner(os.Stdin)
	for requests.Scan() {
		fmt.Println(answer(strings.Fields(requests.Text())))
	}
}

func answer(request []string) string {
	if len(request) == 1 && request[0] == "version" {
		return runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
	}
	var threads *threadLog
	if len(request) > 0 && request[0] == "threads" {
		threads = new(threadLog)
		request = request[1:]
	}
	if len(request) != 4 {
		fail("a request is WORKLOAD NUMBER PROCESSORS ITERATIONS, not %q", request)
	}
	count, processors, iterations := number(request[1]), number(request[2]), number(request[3])
	// GOMAXPROCS stops the world, so it is only called for a new value.
	if runtime.GOMAXPROCS(0) != processors {
		runtime.GOMAXPROCS(processors)
	}
	var taken time.Duration
	switch request[0] {
	case "yield":
		taken = yield(count, iterations, threads)
	case "hop":
		taken = hop(count, iterations, false, threads)
	case "hop-locked":
		taken = hop(count, iterations, true, threads)
	case "group":
		taken = batches(count, iterations, group)
	case "values":
		taken = batches(count, iterations, values)
	default:
		fail("no workload %q", request[0])
	}
	if runtime.GOMAXPROCS(0) != processors {
		fail("GOMAXPROCS is %d, not %d", runtime.GOMAXPROCS(0), processors)
	}
	if threads != nil {
		return threads.summary()
	}
	return strconv.FormatInt(taken.Nanoseconds(), 10)
}

// together runs task(0) to task(count-1), each on a goroutine. The measured time is from the start of
// all until the last one has finished.
func together(count int, task func(index int)) time.Duration {
	var placed atomic.Int64
	var start atomic.Bool
	var wait sync.WaitGroup
	ends := make([]time.Time, count)
	for index := 0; index < count; index++ {
		index := index
		wait.Add(1)
		go func() {
			placed.Add(1)
			for !start.Load() {
				runtime.Gosched()
			}
			task(index)
			ends[index] = time.Now()
			wait.Done()
		}()
	}
	for placed.Load() < int64(count) {
		runtime.Gosched()
	}
	began := time.Now()
	start.Store(true)
	wait.Wait()
	last := began
	for _, end := range ends {
		if end.After(last) {
			last = end
		}
	}
	return last.Sub(began)
}

// yield: the goroutines yield in turn. An iteration is one call of Gosched.
func yield(goroutines, iterations int, threads *threadLog) time.Duration {
	each := (iterations + goroutines - 1) / goroutines
	taken := together(goroutines, func(index int) {
		if threads != nil {
			watch := threads.begin(index)
			for turn := 0; turn < each; turn++ {
				runtime.Gosched()
				watch.sample()
			}
			return
		}
		for turn := 0; turn < each; turn++ {
			runtime.Gosched()
		}
	})
	return scale(taken, iterations, each*goroutines)
}

// hop: in each pair a number is sent through one unbuffered channel and returned through another,
// incremented. An iteration is one way. Locked: each goroutine has a thread of its own.
func hop(pairs, iterations int, locked bool, threads *threadLog) time.Duration {
	rounds := (iterations + 2*pairs - 1) / (2 * pairs)
	type channels struct{ ping, pong chan uint64 }
	all := make([]channels, pairs)
	for pair := range all {
		all[pair] = channels{make(chan uint64), make(chan uint64)}
	}
	taken := together(2*pairs, func(index int) {
		if locked {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
		}
		var watch *threadWatch
		if threads != nil {
			watch = threads.begin(index)
		}
		ping, pong := all[index/2].ping, all[index/2].pong
		if index%2 == 1 {
			for round := 0; round < rounds; round++ {
				pong <- <-ping + 1
				if watch != nil {
					watch.sample()
				}
			}
			return
		}
		var value uint64
		for round := 0; round < rounds; round++ {
			ping <- value
			value = <-pong
			if watch != nil {
				watch.sample()
			}
		}
		if value != uint64(rounds) {
			fail("%d round trips added %d", rounds, value)
		}
	})
	return scale(taken, iterations, 2*pairs*rounds)
}

// batches starts goroutines and waits for them, a batch at a time. An iteration is one goroutine.
// The first batch, which allocates the stacks, is not measured.
func batches(batch, iterations int, run func(results []uint64)) time.Duration {
	rounds := (iterations + batch - 1) / batch
	results := make([]uint64, batch)
	check := func() {
		var sum uint64
		for index := range results {
			sum += results[index]
			results[index] = 0
		}
		if want := uint64(batch) * uint64(batch+1) / 2; sum != want {
			fail("the sum of a batch is %d, not %d", sum, want)
		}
	}
	run(results)
	check()
	began := time.Now()
	for round := 0; round < rounds; round++ {
		run(results)
		check()
	}
	return scale(time.Since(began), iterations, rounds*batch)
}

// group: each goroutine stores a number in its element, and one goroutine waits for all.
func group(results []uint64) {
	var wait sync.WaitGroup
	for index := range results {
		index := index
		wait.Add(1)
		go func() {
			results[index] = uint64(index) + 1
			wait.Done()
		}()
	}
	wait.Wait()
}

// values: each goroutine sends a number to the goroutine that started it, by a channel of its own.
func values(results []uint64) {
	handles := make([]chan uint64, len(results))
	for index := range handles {
		index := index
		handle := make(chan uint64, 1)
		go func() {
			handle <- uint64(index) + 1
		}()
		handles[index] = handle
	}
	for index, handle := range handles {
		results[index] = <-handle
	}
}

// parked parks count goroutines in a channel receive, and prints the resident bytes and the bytes of
// page tables of all of them, and the nanoseconds until all were started, and until all were parked.
func parked(count int) {
	runtime.GOMAXPROCS(1)
	var waiting, sum atomic.Int64
	var wait sync.WaitGroup
	numbers := make(chan int64)
	resident, tables := memory()
	began := time.Now()
	for index := 0; index < count; index++ {
		wait.Add(1)
		go func() {
			waiting.Add(1)
			sum.Add(<-numbers)
			wait.Done()
		}()
	}
	started := time.Since(began)
	// There is one processor, so the last goroutine to count itself parks before this one is resumed.
	for waiting.Load() < int64(count) {
		runtime.Gosched()
	}
	all := time.Since(began)
	residentNow, tablesNow := memory()
	for index := 1; index <= count; index++ {
		numbers <- int64(index)
	}
	wait.Wait()
	if want := int64(count) * int64(count+1) / 2; sum.Load() != want {
		fail("the sum is %d, not %d", sum.Load(), want)
	}
	fmt.Println(residentNow-resident, tablesNow-tables, started.Nanoseconds(), all.Nanoseconds())
}

// memory returns the memory of this process in bytes, as the kernel counts it.
func memory() (resident, tables int64) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		fail("%v", err)
	}
	field := func(name string) int64 {
		_, rest, found := strings.Cut(string(status), "\n"+name)
		line, _, _ := strings.Cut(rest, "\n")
		kib := strings.TrimSuffix(strings.TrimSpace(line), " kB")
		if !found {
			fail("no %s in /proc/self/status", name)
		}
		return int64(number(kib)) * 1024
	}
	return field("VmRSS:"), field("VmPTE:")
}

// A threadLog records the threads that goroutines run on. Each record takes a system call, so the
// time of such a run is not reported.
type threadLog struct {
	samples, moves, others atomic.Int64
	last                   atomic.Int64
	mutex                  sync.Mutex
	seen                   map[int]bool
}

// A threadWatch is the state of one goroutine.
type threadWatch struct {
	log    *threadLog
	index  int64
	thread int
}

func (log *threadLog) begin(index int) *threadWatch {
	watch := &threadWatch{log, int64(index), syscall.Gettid()}
	log.enter(watch.thread)
	log.last.Store(watch.index)
	return watch
}

func (log *threadLog) enter(thread int) {
	log.mutex.Lock()
	defer log.mutex.Unlock()
	if log.seen == nil {
		log.seen = make(map[int]bool)
	}
	log.seen[thread] = true
}

// sample is called after each iteration.
func (watch *threadWatch) sample() {
	log := watch.log
	log.samples.Add(1)
	if log.last.Swap(watch.index) != watch.index {
		log.others.Add(1)
	}
	if thread := syscall.Gettid(); thread != watch.thread {
		watch.thread = thread
		log.moves.Add(1)
		log.enter(thread)
	}
}

// summary: the number of threads; of 1000 iterations, those during which another goroutine ran, and
// those after which the goroutine was on another thread.
func (log *threadLog) summary() string {
	share := func(count *atomic.Int64) int64 { return count.Load() * 1000 / log.samples.Load() }
	return fmt.Sprint(len(log.seen), share(&log.others), share(&log.moves))
}

// scale extrapolates the time, if fewer iterations were requested than were done.
func scale(taken time.Duration, requested, done int) time.Duration {
	return time.Duration(float64(taken) * float64(requested) / float64(done))
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	if err != nil || value < 0 {
		fail("%q is not a number", text)
	}
	return value
}

func fail(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", arguments...)
	os.Exit(1)
}
