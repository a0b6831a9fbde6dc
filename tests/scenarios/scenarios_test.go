// SPDX-License-Identifier: Apache-2.0

// Package scenarios tells what mustang does as scripts that run on a real Docker engine in a fake host; start it with ./run.
//
// Every scenario is one txtar file. Besides testscript's own commands there are those of the table commands, the checks of the
// table checks, and the words eventually, stays, set and counts, which take a command, and load, flows and lookups, which go on meanwhile. After each scenario everything it made is
// removed, and nothing of mustang may be left (see leftovers).
package scenarios

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/rogpeppe/go-internal/testscript"
)

const (
	engineLog = "/var/log/docker.log"
	daemonLog = "/var/log/mustang.log"
)

var engine = os.Getenv("ENGINE")

func TestScenarios(t *testing.T) {
	if os.Getenv("MUSTANG_FAKEHOST") == "" {
		t.Skip("scenarios run in a fake host: tests/scenarios/run")
	}
	baseline, err := snapshot()
	if err != nil {
		t.Fatalf("mustang is not ready: %v", err)
	}
	for _, key := range []string{"net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"} { // a refusal that is not sent looks like a time-out
		if r := run("/", "ip", "netns", "exec", "lan", "sysctl", "-qw", key); r.err != nil {
			t.Fatalf("sysctl %s in lan: %v: %s", key, r.err, r.stderr)
		}
	}
	for _, file := range flag.Args() {
		name := strings.TrimSuffix(filepath.Join(filepath.Base(filepath.Dir(file)), filepath.Base(file)), ".txtar")
		s := &scenario{name: name, baseline: baseline}
		// One after another: each ends by asserting that nothing is left on the host that they share.
		testscript.RunT(one{t}, testscript.Params{
			Files:     []string{file},
			Cmds:      s.commands(),
			Condition: condition,
			Setup:     s.setUp,
		})
		if s.left {
			if baseline, err = snapshot(); err != nil {
				t.Fatalf("after %s mustang is not ready: %v", name, err)
			}
		}
	}
}

// one lets scripts run when they are reached.
type one struct{ *testing.T }

func (one) Parallel()     {}
func (one) Verbose() bool { return testing.Verbose() }
func (o one) Run(name string, f func(testscript.T)) {
	o.T.Run(name, func(t *testing.T) { f(one{t}) })
}

// scenario is one script while it runs.
type scenario struct {
	name     string
	baseline []string
	left     bool // it left something behind: the next one is not to blame
	loads    map[string]*load
	flowing  []string // the loads of the word flows
	asking   map[string]*asking
	onEnd    []func()
	foreign  []link.Link       // programs of somebody else's
	pids     map[string]string // of containers, for when the engine is away
}

func (s *scenario) setUp(env *testscript.Env) error {
	s.loads, s.asking, s.pids = map[string]*load{}, map[string]*asking{}, map[string]string{}
	started, logs := time.Now(), []*tail{newTail(daemonLog), newTail(engineLog)}
	env.Setenv("CHECKOUT", checkout(""))
	for _, key := range []string{"PATH", "DOCKER_CONFIG", "ENGINE", "MUSTANG_FAKEHOST"} {
		env.Setenv(key, os.Getenv(key))
	}
	env.Defer(func() {
		t := env.T().(one)
		seen := logs
		if t.Failed() {
			logTails(t, seen)
		}
		s.endLoads()
		tearDown()
		if left := leftovers(s.baseline, settleTime); len(left) > 0 {
			s.left = true
			if !t.Failed() {
				logTails(t, seen)
			}
			t.Errorf("%s left behind:\n  %s", s.name, strings.Join(left, "\n  "))
		}
		verdict := "ok    "
		if t.Failed() {
			verdict = "FAILED"
		}
		fmt.Printf("%s %5.1f s  %s\n", verdict, time.Since(started).Seconds(), s.name)
	})
	return nil
}

// tail remembers where a log ended when a scenario began.
type tail struct {
	path string
	from int64
}

func newTail(path string) *tail {
	t := &tail{path: path}
	if info, err := os.Stat(path); err == nil {
		t.from = info.Size()
	}
	return t
}

// lines are the last ones written since.
func (t *tail) lines(n int) string {
	text, err := os.ReadFile(t.path)
	if err != nil {
		return err.Error()
	}
	if int64(len(text)) >= t.from {
		text = text[t.from:]
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-n):], "\n")
}

func logTails(t one, logs []*tail) {
	for _, l := range logs {
		t.Logf("the end of %s:\n%s", l.path, l.lines(30))
	}
}
