// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// deadGrace is how long after its process has ended a backend may get a new connection.
const deadGrace = 10 * time.Millisecond

// killed kills a backend again and again while a client connects without a pause, and looks at when the last connection began that was not
// answered: `killed CLIENT TARGET CONTAINER`. The container's first process answers with its name, NAME=CONTAINER.
func killed(s *scenario, _ string, args []string) result {
	if len(args) != 3 {
		return failure("usage: killed CLIENT TARGET CONTAINER")
	}
	f := &figures{promise: "dead backends"}
	k := &killing{s: s, target: args[1], container: args[2]}
	var err error
	if k.ns, err = s.netns(args[0]); err != nil {
		return result{err: err}
	}
	wanted, kills := number("SOAK_KILLS", 2), 0
	for ; kills < wanted && (kills < 2 || !outOfTime()); kills++ {
		if err := k.once(); err != nil {
			return f.result(fmt.Errorf("kill %d: %w", kills+1, err))
		}
	}
	f.state("kills", fmt.Sprint(kills))
	for i, network := range []string{"tcp", "udp"} {
		seen := k.seen[i]
		f.state("new flows around a kill, "+network, fmt.Sprintf("%d, of which %d not answered", seen.asked, seen.failed))
		what := fmt.Sprintf("begin of the last flow that was not answered, %s", network)
		value := "none"
		if seen.failed > 0 {
			value = fmt.Sprintf("%s after the process had ended", seen.last.Round(100*time.Microsecond))
		}
		if network == "tcp" { // the kernel knows at once that a listener is gone
			f.hold(what, value, fmt.Sprintf("≤ %s", deadGrace), seen.failed == 0 || seen.last <= deadGrace)
		} else { // the daemon hears that the process has ended, as soon as it has a CPU
			f.state(what, value)
		}
	}
	return f.result(nil)
}

type killing struct {
	s                     *scenario
	ns, target, container string
	seen                  [2]struct {
		asked, failed int
		last          time.Duration // after the end of the process
	}
}

// attempt is one flow.
type attempt struct {
	begin time.Time
	err   error
}

// once kills the backend with flows before and after it, and has it back.
func (k *killing) once() error {
	if err := k.answers(); err != nil {
		return err
	}
	pid, err := k.s.pid(k.container)
	if err != nil {
		return err
	}
	number, err := strconv.Atoi(pid)
	if err != nil {
		return err
	}
	process, err := unix.PidfdOpen(number, 0)
	if err != nil {
		return err
	}
	defer unix.Close(process)

	stop := make(chan struct{})
	var group sync.WaitGroup
	var mu sync.Mutex
	attempts := [2][]attempt{}
	for i, network := range []string{"tcp", "udp"} {
		group.Go(func() {
			all := k.ask(network, stop)
			mu.Lock()
			defer mu.Unlock()
			attempts[i] = append(attempts[i], all...)
		})
	}
	time.Sleep(200 * time.Millisecond) // flows before it
	err = unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0)
	if err == nil {
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, int(patience(5*time.Second).Milliseconds()))
	}
	ended := time.Now()
	time.Sleep(300 * time.Millisecond) // and after it
	close(stop)
	group.Wait()
	if err != nil {
		return err
	}
	for i, all := range attempts {
		seen := &k.seen[i]
		for _, a := range all {
			seen.asked++
			if a.err == nil {
				continue
			}
			if after := a.begin.Sub(ended); seen.failed == 0 || after > seen.last {
				seen.last = after
			}
			seen.failed++
		}
	}
	if r := run("/", "docker", "start", k.container); r.err != nil {
		return fmt.Errorf("%w: %s", r.err, r.stderr)
	}
	return nil
}

// answers waits until the container gets new flows.
func (k *killing) answers() error {
	for end := time.Now().Add(patience(10 * time.Second)); time.Now().Before(end); {
		var name string
		err := inNetns(k.ns, func() (err error) {
			name, err = askName("tcp", k.target)
			return err
		})
		if err == nil && name == k.container {
			return nil
		}
	}
	return fmt.Errorf("%s answers nothing at %s", k.container, k.target)
}

// ask makes one flow after another until stop.
func (k *killing) ask(network string, stop chan struct{}) (all []attempt) {
	err := inNetns(k.ns, func() error {
		for {
			select {
			case <-stop:
				return nil
			case <-time.After(100 * time.Microsecond):
			}
			begin := time.Now()
			_, err := askName(network, k.target)
			all = append(all, attempt{begin, err})
		}
	})
	if err != nil { // it could not enter the namespace
		all = append(all, attempt{time.Now(), err})
	}
	return all
}

// askName asks once, by a flow of its own that leaves nothing behind.
func askName(network, target string) (string, error) {
	limit := patience(500 * time.Millisecond)
	conn, err := net.DialTimeout(network, target, limit)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // ports would run out
	}
	err = conn.SetDeadline(time.Now().Add(limit))
	if err == nil {
		_, err = io.WriteString(conn, "who\n")
	}
	var answer [256]byte
	n := 0
	if err == nil {
		n, err = conn.Read(answer[:])
	}
	if err == nil && n == 0 {
		err = errors.New("an empty answer")
	}
	return string(answer[:max(0, n-1)]), err
}
