// SPDX-License-Identifier: Apache-2.0

// Command mst-adds calls a plugin of CNI for many sandboxes at once, as a runtime does that starts many containers, and tells how long it took.
//
//	mst-adds -n 50 add net.conf      the sandboxes /run/netns/adds-0 … must be there
//	mst-adds -n 50 del net.conf
//	mst-adds -n 50 -at-once 1 add net.conf     one after another
//
// net.conf is the configuration of one plugin. Times are in milliseconds, from before the plugin's process starts until it has ended: the
// median, the 99th percentile, the longest, and that of all of them together. Then, a call each, the CPU time of the plugin's process and,
// with -daemon PID, that of the process PID meanwhile, which the kernel tells to 10 ms in all.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

func main() {
	number := flag.Int("n", 50, "sandboxes")
	atOnce := flag.Int("at-once", 0, "calls at a time (0: all)")
	plugin := flag.String("plugin", "/opt/cni/bin/mustang", "the plugin's program")
	prefix := flag.String("id", "adds-", "what ids of containers and sandboxes begin with")
	daemon := flag.Int("daemon", 0, "a process whose CPU time is told, too (0: none)")
	flag.Parse()
	if flag.NArg() != 2 || *number < 1 {
		fmt.Fprintln(os.Stderr, "usage: mst-adds [-n NUMBER] [-at-once NUMBER] [-plugin PATH] [-daemon PID] add|del CONFIGURATION")
		os.Exit(2)
	}
	conf, err := os.ReadFile(flag.Arg(1))
	if err != nil {
		fail(err)
	}
	if *atOnce < 1 {
		*atOnce = *number
	}
	calls := &calls{plugin: *plugin, verb: strings.ToUpper(flag.Arg(0)), prefix: *prefix, conf: conf}
	before, err := cpuOf(*daemon)
	if err != nil {
		fail(err)
	}
	begin := time.Now()
	if err := calls.run(*number, *atOnce); err != nil {
		fail(err)
	}
	all := time.Since(begin)
	after, err := cpuOf(*daemon)
	if err != nil {
		fail(err)
	}
	took := slices.Sorted(slices.Values(calls.took))
	each := time.Duration(*number)
	fmt.Printf("%.1f %.1f %.1f %.1f %.2f %.2f\n", ms(at(took, 50)), ms(at(took, 99)), ms(took[len(took)-1]), ms(all),
		ms(calls.cpu/each), ms((after-before)/each))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "mst-adds:", err)
	os.Exit(1)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// at is the nearest-rank percentile of sorted times.
func at(took []time.Duration, percent int) time.Duration {
	return took[max(0, (len(took)*percent+99)/100-1)]
}

// cpuOf is the CPU time that a process has had since it began (proc(5): utime and stime, in ticks of 10 ms).
func cpuOf(pid int) (time.Duration, error) {
	if pid == 0 {
		return 0, nil
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	var user, system int64
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // the name may have blanks
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		return 0, fmt.Errorf("read the CPU time of %d: %w", pid, err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond, nil
}

// calls are all calls of one verb.
type calls struct {
	plugin, verb, prefix string
	conf                 []byte

	mu   sync.Mutex
	took []time.Duration
	cpu  time.Duration
	err  error
}

// run makes the calls and returns the first one's error.
func (c *calls) run(number, atOnce int) error {
	var group sync.WaitGroup
	room := make(chan struct{}, atOnce)
	for i := range number {
		group.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			took, cpu, err := c.call(fmt.Sprintf("%s%d", c.prefix, i))
			c.mu.Lock()
			defer c.mu.Unlock()
			c.took = append(c.took, took)
			c.cpu += cpu
			if c.err == nil {
				c.err = err
			}
		})
	}
	group.Wait()
	return c.err
}

// call executes the plugin once.
func (c *calls) call(id string) (took, cpu time.Duration, err error) {
	var out bytes.Buffer
	cmd := exec.Command(c.plugin)
	cmd.Env = []string{
		"CNI_COMMAND=" + c.verb, "CNI_CONTAINERID=" + id, "CNI_IFNAME=eth0", "CNI_NETNS=/run/netns/" + id,
		"CNI_PATH=/opt/cni/bin", "PATH=" + os.Getenv("PATH"),
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(c.conf), &out, &out
	begin := time.Now()
	err = cmd.Run()
	took = time.Since(begin)
	if cmd.ProcessState != nil {
		cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", c.verb, id, err, out.Bytes())
	}
	return took, cpu, err
}
