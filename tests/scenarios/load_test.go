// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"bytes"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/testscript"
)

// load is mst-load that goes on while the script does something else.
type load struct {
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan error
}

// load is `load start NAME CLIENT [FLAGS] TARGET`, and `load stop NAME [MOST]`, which fails if more requests than MOST (0) failed, or
// if there was none.
func (s *scenario) load(ts *testscript.TestScript, neg bool, args []string) {
	switch {
	case neg || len(args) < 2:
	case args[0] == "start" && len(args) > 3:
		s.startLoad(ts, args[1], args[2], args[3:])
		return
	case args[0] == "stop":
		s.stopLoad(ts, args[1], args[2:])
		return
	}
	ts.Fatalf("usage: load start NAME CLIENT [FLAGS] TARGET, load stop NAME [MOST]")
}

func (s *scenario) startLoad(ts *testscript.TestScript, name, client string, args []string) {
	argv, err := s.loader(client)
	ts.Check(err)
	argv = append(append(argv, "-slowest", "-for", patience(200*time.Second).String()), args...)
	l := &load{cmd: exec.Command(argv[0], argv[1:]...), done: make(chan error, 1)}
	l.cmd.Stdout, l.cmd.Stderr = &l.out, &l.out
	ts.Check(l.cmd.Start())
	go func() { l.done <- l.cmd.Wait() }()
	s.loads[name] = l
}

func (s *scenario) stopLoad(ts *testscript.TestScript, name string, args []string) {
	sum := s.endLoad(ts, name)
	result{stdout: sum.report}.show(ts)
	most := 0
	if len(args) > 0 {
		var err error
		most, err = strconv.Atoi(args[0])
		ts.Check(err)
	}
	if sum.requests == 0 || sum.failed > most {
		ts.Fatalf("load %s: %d requests, %d failed", name, sum.requests, sum.failed)
	}
}

// loadSum is what a load came to.
type loadSum struct {
	report           string
	requests, failed int
	slowest          string
}

// endLoad ends a load, and reads its report.
func (s *scenario) endLoad(ts *testscript.TestScript, name string) (sum loadSum) {
	l := s.loads[name]
	if l == nil {
		ts.Fatalf("no load is called %s", name)
	}
	delete(s.loads, name)
	select {
	case <-l.done:
		ts.Fatalf("load %s ended by itself:\n%s", name, l.out.String())
	default:
	}
	ts.Check(l.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-l.done:
	case <-time.After(patience(10 * time.Second)):
		ts.Fatalf("load %s does not end", name)
	}
	sum.report = l.out.String()
	found := regexp.MustCompile(`(?ms)^slowest answer (\S+)$.*^(\d+) requests, (\d+) failed`).FindStringSubmatch(sum.report)
	if found == nil {
		ts.Fatalf("load %s made no report:\n%s", name, sum.report)
	}
	sum.slowest = found[1]
	sum.requests, _ = strconv.Atoi(found[2])
	sum.failed, _ = strconv.Atoi(found[3])
	return sum
}

// ways are the loads of one word flows: a flow that is held, and new ones, by TCP and by UDP.
var ways = map[string][]string{"held-tcp": {"-hold"}, "held-udp": {"-hold", "-udp"}, "new-tcp": nil, "new-udp": {"-udp"}}

// flows has flows of every kind go on meanwhile: `flows start CLIENT [FLAGS] TARGET…` begins four loads for each target, and
// `flows stop [MOST]` ends them all. It says of each how many requests there were, how many failed, and how long the slowest answer
// took, and fails if one failed, or there was none. Of datagrams that begin a flow each MOST (0) may be lost.
func (s *scenario) flows(ts *testscript.TestScript, neg bool, args []string) {
	switch {
	case neg || len(args) == 0:
	case args[0] == "start" && len(args) > 2:
		at := 2
		for at < len(args) && strings.HasPrefix(args[at], "-") {
			at += 2
		}
		for _, target := range args[at:] {
			for way, flags := range ways {
				name := strings.Join([]string{args[1], target, way}, " ")
				s.startLoad(ts, name, args[1], slices.Concat(args[2:at], flags, []string{target}))
				s.flowing = append(s.flowing, name)
			}
		}
		return
	case args[0] == "stop" && len(args) < 3 && len(s.flowing) > 0:
		most := 0
		if len(args) == 2 {
			var err error
			most, err = strconv.Atoi(args[1])
			ts.Check(err)
		}
		s.stopFlows(ts, most)
		return
	}
	ts.Fatalf("usage: flows start CLIENT [FLAGS] TARGET…, flows stop [MOST]")
}

func (s *scenario) stopFlows(ts *testscript.TestScript, most int) {
	slices.Sort(s.flowing)
	var bad, table strings.Builder
	for _, name := range s.flowing {
		sum := s.endLoad(ts, name)
		fmt.Fprintf(&table, "%-40s %6d requests, %d failed, slowest answer %s\n", name, sum.requests, sum.failed, sum.slowest)
		may := 0
		if strings.HasSuffix(name, " new-udp") {
			may = most
		}
		if sum.requests == 0 || sum.failed > may {
			fmt.Fprintf(&bad, "%s:\n%s", name, sum.report)
		}
	}
	s.flowing = nil
	result{stdout: table.String()}.show(ts)
	if bad.Len() > 0 {
		ts.Fatalf("requests failed:\n%s", bad.String())
	}
}

func (s *scenario) endLoads() {
	for _, l := range s.loads {
		_ = l.cmd.Process.Kill() // it may have ended
		<-l.done
	}
	for _, a := range s.asking {
		a.end()
	}
	for _, end := range s.onEnd {
		end()
	}
	s.onEnd = nil
}

// lookups asks a name again and again meanwhile: `lookups start NAME CONTAINER NAME-TO-ASK`, and `lookups stop NAME`, which asks
// on until there were some hundred, and fails if one had no answer or an error. As a resolver does, it repeats a query that was not
// answered; a daemon that is killed may take the one with it that it was just answering.
func (s *scenario) lookups(ts *testscript.TestScript, neg bool, args []string) {
	switch {
	case neg || len(args) < 2:
	case args[0] == "start" && len(args) == 4:
		a := &asking{stop: make(chan struct{}), done: make(chan struct{})}
		ns, err := s.netns(args[2])
		ts.Check(err)
		go a.run(ns, args[3])
		s.asking[args[1]] = a
		return
	case args[0] == "stop" && s.asking[args[1]] != nil:
		a := s.asking[args[1]]
		delete(s.asking, args[1])
		a.end()
		ts.Logf("%d lookups, %d repeated, %d failed", a.count, a.repeated, len(a.failures))
		if len(a.failures) > 0 || a.repeated > mostRepeated {
			ts.Fatalf("%d of %d lookups failed, %d were repeated:\n%s", len(a.failures), a.count, a.repeated, strings.Join(a.failures[:min(5, len(a.failures))], "\n"))
		}
		return
	}
	ts.Fatalf("usage: lookups start NAME CONTAINER NAME-TO-ASK, lookups stop NAME")
}

const (
	leastLookups = 300
	mostRepeated = 1
)

// asking is lookups under way.
type asking struct {
	stop, done chan struct{}
	count      int
	repeated   int
	failures   []string
}

func (a *asking) run(ns, name string) {
	defer close(a.done)
	for stopping := false; !stopping || a.count < leastLookups; {
		select {
		case <-a.stop:
			stopping = true
		case <-time.After(time.Millisecond):
		}
		started := time.Now()
		reply, err := ask(ns, dns.Fqdn(name), dns.TypeA, "udp")
		if err != nil {
			a.repeated++
			reply, err = ask(ns, dns.Fqdn(name), dns.TypeA, "udp")
		}
		a.count++
		switch {
		case err != nil:
			a.failures = append(a.failures, fmt.Sprintf("%s after %s: %v", started.Format(time.StampMilli), time.Since(started), err))
		case reply.Rcode != dns.RcodeSuccess || len(reply.Answer) == 0:
			a.failures = append(a.failures, fmt.Sprintf("%s %s, %d records", started.Format(time.StampMilli), dns.RcodeToString[reply.Rcode], len(reply.Answer)))
		}
	}
}

func (a *asking) end() {
	close(a.stop)
	<-a.done
}
