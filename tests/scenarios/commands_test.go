// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// commandTime ends a command that hangs.
const commandTime = 60 * time.Second

// result is what a command printed, and why it failed.
type result struct {
	stdout, stderr string
	err            error
}

// command does one thing in the working directory of a script.
type command func(s *scenario, dir string, args []string) result

// commands by the word that a script uses.
var commands = map[string]command{
	"docker":  docker,
	"mustang": program("mustang"),
	"compose": compose,
	"host":    program(),                             // on the host
	"lan":     program("ip", "netns", "exec", "lan"), // outside of the host
	"engine": func(s *scenario, dir string, args []string) result {
		return run(dir, append([]string{fakehost(), "engine"}, args...)...)
	},
	"daemon": func(s *scenario, dir string, args []string) result {
		return run(dir, append([]string{fakehost(), "daemon"}, args...)...)
	},
	"containerd": func(s *scenario, dir string, args []string) result {
		return run(dir, append([]string{fakehost(), "containerd"}, args...)...)
	},
	"systemd": func(_ *scenario, dir string, args []string) result {
		return run(dir, append([]string{checkout("tests/systemd")}, args...)...)
	},
	"documented": documented("sh", "-c"),
	"booted":     documented(checkout("tests/systemd"), "run", "sh", "-c"),
	"nerdctl":    program("nerdctl"),
	"cni":        cni,
	"plugin":     plugin,
	"reserve":    reserve,
	"in":         inContainer,
	"inside":     inside,
	"lookup":     lookup,
	"nameserver": nameserver,
	"serve":      serve,
	"radio":      radio,
	"tunnel":     tunnel,
	"foreign":    foreign,
	"raw":        raw,
	"follow":     follow,
	"churn":      churn,
	"updates":    updates,
	"killed":     killed,
	"vip":        vip,
	"address":    address,
}

func program(argv ...string) command {
	return func(_ *scenario, dir string, args []string) result {
		return run(dir, append(argv[:len(argv):len(argv)], args...)...)
	}
}

func run(dir string, argv ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), patience(commandTime))
	defer cancel()
	var out, errs bytes.Buffer
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Dir, c.Stdout, c.Stderr = dir, &out, &errs
	c.Env = append(os.Environ(), "WORK="+dir)
	c.WaitDelay = time.Second // a daemon that it started may keep the pipes
	err := c.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	return result{out.String(), errs.String(), err}
}

// inContainer runs a program of the image in a container's namespaces: `in CONTAINER COMMAND…`. It needs no engine.
func inContainer(s *scenario, dir string, args []string) result {
	if len(args) < 2 {
		return failure("usage: in CONTAINER COMMAND…")
	}
	argv, err := s.enter(args[0])
	if err != nil {
		return result{err: err}
	}
	return run("/", append(argv, args[1:]...)...)
}

// inside runs a program of the host's in a container's network, with all rights: what CAP_NET_ADMIN allows there, with the
// host's iproute2: `inside CONTAINER COMMAND…`.
func inside(s *scenario, _ string, args []string) result {
	if len(args) < 2 {
		return failure("usage: inside CONTAINER COMMAND…")
	}
	pid, err := s.pid(args[0])
	if err != nil {
		return result{err: err}
	}
	return run("/", append([]string{"nsenter", "--target", pid, "--net", "--"}, args[1:]...)...)
}

// enter is the start of a command line that runs in a container.
func (s *scenario) enter(container string) ([]string, error) {
	pid, err := s.pid(container)
	return []string{"nsenter", "--target", pid, "--net", "--mount", "--uts", "--"}, err
}

// pid finds a container's first process, as long as the engine can be asked.
func (s *scenario) pid(container string) (string, error) {
	pid, err := enginePid(container)
	if err != nil {
		if r := run("/", "nerdctl", "inspect", "--format", "{{.State.Pid}}", container); r.err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(r.stdout))
		}
	}
	if err == nil {
		if pid == 0 {
			return "", fmt.Errorf("container %s is not running", container)
		}
		s.pids[container] = strconv.Itoa(pid)
	}
	if known := s.pids[container]; known != "" {
		return known, nil
	}
	return "", fmt.Errorf("find container %s: %w", container, err)
}

// askEngine is a client of the engine's API: before every request, the CLI would cost a second where the machine is emulated.
var askEngine = http.Client{Transport: &http.Transport{
	DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", "/var/run/docker.sock")
	},
	DisableKeepAlives: true, // the engine may be ended meanwhile
}}

// enginePid is 0 for a container that does not run.
func enginePid(container string) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience(commandTime))
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine/containers/"+container+"/json", nil)
	if err != nil {
		return 0, err
	}
	reply, err := askEngine.Do(request)
	if err != nil {
		return 0, err
	}
	defer reply.Body.Close()
	var answer struct {
		Message string
		State   struct{ Pid int }
	}
	if err := json.NewDecoder(reply.Body).Decode(&answer); err != nil {
		return 0, err
	}
	if reply.StatusCode != http.StatusOK {
		return 0, errors.New(answer.Message)
	}
	return answer.State.Pid, nil
}

// vip prints the IPv4 VIP of a service: `vip NAME [NETWORK]`, or its IPv6 one: `vip -6 …`.
func vip(_ *scenario, dir string, args []string) result {
	six := len(args) > 0 && args[0] == "-6"
	if six {
		args = args[1:]
	}
	if len(args) == 0 {
		return failure("usage: vip [-6] NAME [NETWORK]")
	}
	r := run(dir, "mustang", "svc", "ls", "-o", "json")
	var services []struct {
		Name, Network string
		Frontends     []struct{ Address netip.Addr }
	}
	if err := json.Unmarshal([]byte(r.stdout), &services); err != nil {
		return failure("mustang svc ls: %s: %v", r.stderr, err)
	}
	for _, service := range services {
		if service.Name != args[0] || len(args) > 1 && service.Network != args[1] {
			continue
		}
		for _, f := range service.Frontends {
			if f.Address.Is6() == six {
				return result{stdout: f.Address.String() + "\n"}
			}
		}
	}
	return failure("no service %s: %s", strings.Join(args, " on "), r.stdout)
}

// address prints a container's address: `address [-6] CONTAINER NETWORK`.
func address(_ *scenario, dir string, args []string) result {
	field := "IPAddress"
	if len(args) > 0 && args[0] == "-6" {
		field, args = "GlobalIPv6Address", args[1:]
	}
	if len(args) != 2 {
		return failure("usage: address [-6] CONTAINER NETWORK")
	}
	return run(dir, "docker", "inspect", "--format", fmt.Sprintf("{{(index .NetworkSettings.Networks %q).%s}}", args[1], field), args[0])
}

func failure(format string, args ...any) result { return result{err: fmt.Errorf(format, args...)} }

// commands are the words of a script: the commands themselves, the checks, and what takes a command.
func (s *scenario) commands() map[string]func(*testscript.TestScript, bool, []string) {
	words := map[string]func(*testscript.TestScript, bool, []string){
		"eventually": s.eventually, "stays": s.stays, "set": s.set, "counts": s.counts, "load": s.load, "flows": s.flows, "lookups": s.lookups, "kills": s.kills,
	}
	for word, c := range commands {
		words[word] = func(ts *testscript.TestScript, neg bool, args []string) { s.do(ts, neg, c, args) }
	}
	for word, c := range checks {
		words[word] = func(ts *testscript.TestScript, neg bool, args []string) { s.do(ts, neg, c, args) }
	}
	return words
}

// do runs a command once, and keeps its output for `stdout` and `stderr`.
func (s *scenario) do(ts *testscript.TestScript, neg bool, c command, args []string) {
	r := c(s, ts.MkAbs("."), args)
	r.show(ts)
	switch {
	case r.err != nil && !neg:
		ts.Fatalf("%v", r.err)
	case r.err == nil && neg:
		ts.Fatalf("unexpected success")
	}
}

func (r result) show(ts *testscript.TestScript) {
	fmt.Fprint(ts.Stdout(), r.stdout)
	fmt.Fprint(ts.Stderr(), r.stderr)
}

// set keeps what a command prints: `set NAME COMMAND…` for $NAME.
func (s *scenario) set(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 || neg {
		ts.Fatalf("usage: set NAME COMMAND…")
	}
	r := s.word(ts, args[1:])
	if r.err != nil {
		ts.Fatalf("%v: %s", r.err, r.stderr)
	}
	ts.Setenv(args[0], strings.TrimSpace(r.stdout))
	ts.Logf("%s=%s", args[0], strings.TrimSpace(r.stdout))
}

// word runs a command given with its arguments.
func (s *scenario) word(ts *testscript.TestScript, args []string) result {
	c := commands[args[0]]
	if c == nil {
		c = checks[args[0]]
	}
	if c == nil {
		ts.Fatalf("%s is no command", args[0])
	}
	return c(s, ts.MkAbs("."), args[1:])
}

// eventually repeats a command until its output matches, or with !PATTERN until it succeeds and no longer does:
// `eventually [SECONDS] PATTERN COMMAND…`. Without SECONDS it has ten. Requests that failed match nothing.
func (s *scenario) eventually(ts *testscript.TestScript, neg bool, args []string) {
	s.repeat(ts, neg, args, 10*time.Second, func(holds bool) bool { return holds }, true)
}

// stays asserts that the output matches each time: `stays [SECONDS] PATTERN COMMAND…`. Without SECONDS for two.
func (s *scenario) stays(ts *testscript.TestScript, neg bool, args []string) {
	s.repeat(ts, neg, args, 2*time.Second, func(holds bool) bool { return !holds }, false)
}

// repeat runs a command until over says so of its output, or the time is up; only one of these is good.
func (s *scenario) repeat(ts *testscript.TestScript, neg bool, args []string, limit time.Duration, over func(holds bool) bool, good bool) {
	if len(args) > 2 {
		if d, err := time.ParseDuration(args[0] + "s"); err == nil {
			limit, args = d, args[1:]
		}
	}
	if neg || len(args) < 2 {
		ts.Fatalf("usage: eventually|stays [SECONDS] [!]PATTERN COMMAND…")
	}
	pattern, absent := strings.CutPrefix(args[0], "!")
	re, err := regexp.Compile("(?m)" + pattern)
	ts.Check(err)
	if good {
		limit = patience(limit) // but what must stay is watched for as long as it says
	}
	for end := time.Now().Add(limit); ; time.Sleep(patience(20 * time.Millisecond)) {
		r := s.word(ts, args[1:])
		holds := re.MatchString(r.stdout + r.stderr)
		if r.err != nil {
			holds = holds || re.MatchString(r.err.Error())
		}
		if absent {
			holds = !holds && r.err == nil
		}
		if r.err != nil && slices.Contains([]string{"asks", "reach", "spread"}, args[1]) {
			holds = false
		}
		ended := over(holds)
		if !ended && time.Now().Before(end) {
			continue
		}
		r.show(ts)
		if ended != good {
			ts.Fatalf("%s: %q does not hold: %v", strings.Join(args[1:], " "), args[0], r.err)
		}
		return
	}
}
