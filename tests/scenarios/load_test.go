// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"bytes"
	"os/exec"
	"regexp"
	"strconv"
	"syscall"
	"time"

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
	argv = append(append(argv, "-for", "100s"), args...)
	l := &load{cmd: exec.Command(argv[0], argv[1:]...), done: make(chan error, 1)}
	l.cmd.Stdout, l.cmd.Stderr = &l.out, &l.out
	ts.Check(l.cmd.Start())
	go func() { l.done <- l.cmd.Wait() }()
	s.loads[name] = l
}

func (s *scenario) stopLoad(ts *testscript.TestScript, name string, args []string) {
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
	case <-time.After(10 * time.Second):
		ts.Fatalf("load %s does not end", name)
	}
	result{stdout: l.out.String()}.show(ts)
	sum := regexp.MustCompile(`(?m)^(\d+) requests, (\d+) failed`).FindStringSubmatch(l.out.String())
	if sum == nil {
		ts.Fatalf("load %s made no report:\n%s", name, l.out.String())
	}
	most := 0
	if len(args) > 0 {
		var err error
		most, err = strconv.Atoi(args[0])
		ts.Check(err)
	}
	requests, _ := strconv.Atoi(sum[1])
	if failed, _ := strconv.Atoi(sum[2]); requests == 0 || failed > most {
		ts.Fatalf("load %s: %s", name, sum[0])
	}
}

func (s *scenario) endLoads() {
	for _, l := range s.loads {
		_ = l.cmd.Process.Kill() // it may have ended
		<-l.done
	}
}
