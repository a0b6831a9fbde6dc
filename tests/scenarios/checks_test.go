// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// checks by the word that a script uses. CLIENT is a container, a network namespace such as `lan`, or `host`; FLAGS are those of mst-load.
var checks = map[string]command{
	"asks":        asks,
	"reach":       reach,
	"spread":      spread,
	"refused":     fails("connection refused", true),
	"unreachable": fails("no route to host|network is unreachable", true),
	"blocked":     fails("i/o timeout|no route to host|network is unreachable", false),
}

// atOnce is the most that a refusal may take: less than any time-out, and enough for two busy cores. An ICMP error from a
// router may count after a second only: a socket that is busy connecting keeps the first. The next would count after three.
const atOnce = 2800 * time.Millisecond

// answerTime is how long a lookup waits for its answer.
const answerTime = 2 * time.Second

// loadIn runs mst-load where a client is.
func (s *scenario) loadIn(client string, args ...string) result {
	argv, err := s.loader(client)
	if err != nil {
		return result{err: err}
	}
	return run("/", append(argv, args...)...)
}

// loader is the start of a command line of mst-load.
func (s *scenario) loader(client string) ([]string, error) {
	argv, err := s.testProgram("mst-load", client)
	return append(argv, "-timeout", patience(2*time.Second).String(), "-for", patience(30*time.Second).String()), err
}

// testProgram is the start of a command line of a program that the image has too, in a container, on the host or outside of it.
func (s *scenario) testProgram(name, where string) ([]string, error) {
	built := checkout("bin/tests/" + name)
	if where == "host" {
		return []string{built}, nil
	}
	if _, err := os.Stat("/run/netns/" + where); err == nil { // lan, or one that a script made
		return []string{"ip", "netns", "exec", where, built}, nil
	}
	argv, err := s.enter(where)
	return append(argv, name), err
}

// asks sends one request, which must be answered, and prints who did: `asks CLIENT [FLAGS] TARGET`.
func asks(s *scenario, _ string, args []string) result {
	r := s.loadIn(args[0], append([]string{"-n", "1"}, args[1:]...)...)
	if r.err == nil {
		r.stdout = regexp.MustCompile(`^\s*1  `).ReplaceAllString(strings.SplitAfter(r.stdout, "\n")[0], "")
	}
	return r
}

// reach asks every target from every client, over TCP and UDP, all of which must be answered, and prints who asked whom and what they got:
// `reach CLIENT,… TARGET…`.
func reach(s *scenario, dir string, args []string) (r result) {
	if len(args) < 2 {
		return failure("usage: reach CLIENT,… TARGET…")
	}
	for client := range strings.SplitSeq(args[0], ",") {
		for _, target := range args[1:] {
			for protocol, flags := range map[string][]string{"tcp": nil, "udp": {"-udp"}} {
				one := asks(s, dir, append(append([]string{client}, flags...), target))
				r.stdout += fmt.Sprintf("%s %s %s: %s", client, protocol, target, one.stdout)
				if one.err != nil {
					r.err = errors.Join(r.err, fmt.Errorf("%s asks %s by %s: %w", client, target, protocol, one.err))
				}
			}
		}
	}
	return r
}

// spread sends many requests, all of which must be answered, by so many servers, each of them at least so many percent:
// `spread CLIENT NUMBER SERVERS PERCENT [FLAGS] TARGET`. It counts when as many have answered before: what has just been started listens a moment later.
func spread(s *scenario, _ string, args []string) result {
	if len(args) < 5 {
		return failure("usage: spread CLIENT NUMBER SERVERS PERCENT [FLAGS] TARGET")
	}
	var numbers [3]int
	for i, text := range args[1:4] {
		n, err := strconv.Atoi(text)
		if err != nil {
			return result{err: err}
		}
		numbers[i] = n
	}
	var r result
	var counts [][]string
	ask := func(n int) {
		r = s.loadIn(args[0], append([]string{"-n", strconv.Itoa(n)}, args[4:]...)...)
		counts = regexp.MustCompile(`(?m)^ *(\d+)  `).FindAllStringSubmatch(r.stdout, -1)
	}
	for end := time.Now().Add(patience(3 * time.Second)); numbers[1] > 1 && len(counts) < numbers[1] && time.Now().Before(end); {
		ask(10 * numbers[1])
		if r.err != nil && !conditions["nft"]() { // ADR 13: there nobody knows whether a backend listens
			return r
		}
		if r.err != nil {
			counts = nil // an error has a line like a server's
		}
	}
	ask(numbers[0])
	if r.err == nil && len(counts) != numbers[1] {
		r.err = fmt.Errorf("%d servers answered, not %d", len(counts), numbers[1])
	}
	for _, c := range counts {
		if n, _ := strconv.Atoi(c[1]); r.err == nil && n*100 < numbers[0]*numbers[2] {
			r.err = fmt.Errorf("a server answered %d of %d requests, less than %d %%", n, numbers[0], numbers[2])
		}
	}
	return r
}

// fails says how a request must fail: `refused CLIENT [FLAGS] TARGET`.
func fails(pattern string, quick bool) command {
	re := regexp.MustCompile(pattern)
	return func(s *scenario, _ string, args []string) result {
		limit := time.Second
		if quick {
			limit = patience(4 * time.Second)
		}
		started := time.Now()
		r := s.loadIn(args[0], append([]string{"-n", "1", "-timeout", limit.String()}, args[1:]...)...)
		took := time.Since(started)
		switch {
		case r.err == nil:
			r.err = fmt.Errorf("it was answered, not %q", pattern)
		case !re.MatchString(r.stdout):
			r.err = fmt.Errorf("it failed, but not by %q", pattern)
		case quick && took > patience(atOnce):
			r.err = fmt.Errorf("it failed after %s, not at once", took)
		default:
			r.err = nil
		}
		return r
	}
}

// lookup asks the resolver of a container's resolv.conf: `lookup CONTAINER NAME [TYPE] [tcp]`. It prints the response code and then
// the records in order, each as "NAME TTL TYPE DATA"; any response is a success, none within two seconds is a failure.
func lookup(s *scenario, _ string, args []string) result {
	if len(args) < 2 {
		return failure("usage: lookup CONTAINER NAME [TYPE] [tcp]")
	}
	network := "udp"
	if args[len(args)-1] == "tcp" {
		network, args = "tcp", args[:len(args)-1]
	}
	kind := dns.TypeA
	if len(args) > 2 {
		kind = dns.StringToType[strings.ToUpper(args[2])]
	}
	name := dns.Fqdn(args[1])
	if kind == dns.TypePTR && net.ParseIP(args[1]) != nil {
		name, _ = dns.ReverseAddr(args[1])
	}
	ns, err := s.netns(args[0])
	if err != nil {
		return result{err: err}
	}
	reply, err := ask(ns, name, kind, network)
	if err != nil {
		return failure("look up %s: %v", name, err)
	}
	var lines []string
	for _, record := range reply.Answer {
		lines = append(lines, strings.Join(strings.Fields(strings.Replace(record.String(), "\tIN\t", "\t", 1)), " "))
	}
	slices.Sort(lines)
	return result{stdout: strings.Join(append([]string{dns.RcodeToString[reply.Rcode]}, lines...), "\n") + "\n"}
}

// ask sends one query in a network namespace.
func ask(ns, name string, kind uint16, network string) (reply *dns.Msg, err error) {
	err = inNetns(ns, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), patience(answerTime))
		defer cancel()
		q := new(dns.Msg).SetQuestion(name, kind)
		reply, _, err = (&dns.Client{Net: network, Timeout: patience(answerTime)}).ExchangeContext(ctx, q, "127.0.0.11:53")
		return err
	})
	return reply, err
}

// nameserver answers queries for one name with an address, and all others with NXDOMAIN, until the script ends:
// `nameserver CONTAINER|lan NAME ADDRESS`.
func nameserver(s *scenario, _ string, args []string) result {
	if len(args) != 3 {
		return failure("usage: nameserver CONTAINER|lan NAME ADDRESS")
	}
	ns, err := s.netns(args[0])
	if err != nil {
		return result{err: err}
	}
	server := &dns.Server{Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		reply := new(dns.Msg).SetReply(q)
		if q.Question[0].Name != dns.Fqdn(args[1]) {
			reply.Rcode = dns.RcodeNameError
		} else if record, err := dns.NewRR(q.Question[0].Name + " 60 IN A " + args[2]); err == nil && q.Question[0].Qtype == dns.TypeA {
			reply.Answer = append(reply.Answer, record)
		}
		_ = w.WriteMsg(reply) // who asked may be gone
	})}
	if err := inNetns(ns, func() (err error) {
		server.PacketConn, err = net.ListenPacket("udp", ":53")
		return err
	}); err != nil {
		return result{err: err}
	}
	go func() { _ = server.ActivateAndServe() }()
	s.onEnd = append(s.onEnd, func() { server.PacketConn.Close() })
	return result{}
}

// serve answers requests on the host, in a container or outside until the script ends, with the client's address:
// `serve CONTAINER|lan|host ADDRESS`.
func serve(s *scenario, _ string, args []string) result {
	if len(args) != 2 {
		return failure("usage: serve CONTAINER|lan|host ADDRESS")
	}
	argv, err := s.testProgram("mst-serve", args[0])
	if err != nil {
		return result{err: err}
	}
	cmd := exec.Command(argv[0], append(argv[1:], "-client", args[1])...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return result{err: err}
	}
	if err := cmd.Start(); err != nil {
		return result{err: err}
	}
	s.onEnd = append(s.onEnd, func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return failure("mst-serve does not listen on %s: %w", args[1], err)
	}
	return result{}
}

// netns is the network namespace of a container, or of the outside.
func (s *scenario) netns(where string) (string, error) {
	if where == "lan" {
		return "/run/netns/lan", nil
	}
	pid, err := s.pid(where)
	return "/proc/" + pid + "/ns/net", err
}

// inNetns runs f with its thread in a network namespace.
func inNetns(path string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		ns, err := os.Open(path)
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}
