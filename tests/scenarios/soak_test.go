// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// number is how much of something a soak does: what the environment says (tests/soak), or what fits in `make test`.
func number(key string, short int) int {
	if n, err := strconv.Atoi(os.Getenv(key)); err == nil && n > 0 {
		return n
	}
	return short
}

// atLength tells whether this is a soak, which judges how fast mustang is, too. In `make test` the machine is not its alone.
var atLength = number("SOAK_END", 0) > 0

// outOfTime tells whether a soak that is bounded begins nothing more.
func outOfTime() bool {
	end := number("SOAK_END", 0) // seconds since 1970
	return end > 0 && time.Now().Unix() >= int64(end)
}

// figures are what a word of a soak has measured, one a line: promise, what, value, limit ("" for none) and whether it held.
type figures struct {
	promise string
	lines   []string
	broken  []string
}

// state is a value that has no limit.
func (f *figures) state(what, value string) { f.add(what, value, "", true) }

// soaked is a value with a limit that only a soak judges.
func (f *figures) soaked(what, value, limit string, held bool) {
	if !atLength {
		limit = ""
	}
	f.add(what, value, limit, held)
}

// hold is a value with a limit.
func (f *figures) hold(what, value, limit string, held bool) { f.add(what, value, limit, held) }

func (f *figures) add(what, value, limit string, held bool) {
	verdict := "held"
	switch {
	case limit == "":
		verdict = "stated"
	case !held:
		verdict = "BROKEN"
		f.broken = append(f.broken, fmt.Sprintf("%s is %s, and should be %s", what, value, limit))
	}
	f.lines = append(f.lines, strings.Join([]string{f.promise, what, value, limit, verdict}, "\t"))
}

// result tells the script, and tests/soak if it asks.
func (f *figures) result(err error) result {
	text := strings.Join(f.lines, "\n") + "\n"
	if path := os.Getenv("SOAK_FIGURES"); path != "" {
		file, open := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if open == nil {
			_, open = file.WriteString(text)
			open = errors.Join(open, file.Close())
		}
		err = errors.Join(err, open)
	}
	if len(f.broken) > 0 {
		err = errors.Join(err, errors.New(strings.Join(f.broken, "\n")))
	}
	return result{stdout: text, err: err}
}

// percentile is the nearest-rank one of times, rounded for reading.
func percentile(took []time.Duration, percent int) string {
	if len(took) == 0 {
		return "–"
	}
	slices.Sort(took)
	return took[max(0, (len(took)*percent+99)/100-1)].Round(100 * time.Microsecond).String()
}

// held is what the daemon has and what it has made in the kernel, as numbers.
type held map[string]float64

// rss is the one of them that is not exact.
const rss = "RSS"

// metricsSocket is where the scenarios of soak have the daemon show its metrics.
const metricsSocket = "/run/mustang/metrics.sock"

// lazily is what the datapath makes by itself and the daemon collects every 30 s, or, of an endpoint, when that goes.
var lazily = []string{"map traffic", "map snat", "map ct"}

// Metrics that tell what the daemon has.
var heldMetrics = regexp.MustCompile(`^(?:process_open_fds|go_goroutines|process_resident_memory_bytes|mustang_published_ports|mustang_pool_leases\S*|mustang_map_entries\S*) `)

func countHeld() (held, error) {
	reply, err := unixClient(metricsSocket).Get("http://mustang/metrics")
	if err != nil {
		return nil, err
	}
	defer reply.Body.Close()
	h := held{}
	for lines := bufio.NewScanner(reply.Body); lines.Scan(); {
		line := lines.Text()
		if !heldMetrics.MatchString(line) {
			continue
		}
		name, text, _ := strings.Cut(line, " ")
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, fmt.Errorf("metric %s: %w", line, err)
		}
		switch name {
		case "process_open_fds":
			name = "fds"
		case "go_goroutines":
			name = "goroutines"
		case "process_resident_memory_bytes":
			name, value = rss, value/(1<<20)
		}
		h[strings.NewReplacer("mustang_map_entries{map=", "map ", "mustang_pool_leases{pool=", "leases of ", "mustang_published_ports", "published ports", `"`, "", "}", "").Replace(name)] = value
	}
	for what, argv := range map[string][]string{
		"links":          {"ip", "-o", "link"},
		"routes":         {"ip", "-o", "route", "show", "table", "all"},
		"nftables lines": {"nft", "list", "ruleset"},
		"pins":           {"ls", "/sys/fs/bpf/tc/globals"},
	} {
		h[what] = float64(len(matching(".", argv...)))
	}
	accepted, opened := engineConnections()
	opened = min(opened, 3) // two that are idle and the one of events: more would be lost ones
	h["fds"] -= accepted + opened
	h["goroutines"] -= accepted + 2*opened
	return h, nil
}

// engineConnections counts what is open between engines and the daemon, some of it idle for a while: to the plugin's socket, each a descriptor and a
// goroutine of the daemon's, and to the engine's, each a descriptor and two goroutines (net/http reads and writes in one each).
func engineConnections() (accepted, opened float64) {
	connections := matching("ESTAB", "ss", "-Hxp") // type, state, queues, name, inode, name and inode of the peer, users; only an accepted one has a name
	peers := map[string]bool{}
	for _, line := range connections {
		if strings.Contains(line, `"dockerd"`) {
			peers[strings.Fields(line)[5]] = true
		}
	}
	for _, line := range connections {
		f := strings.Fields(line)
		switch {
		case !strings.Contains(line, `"mustang"`) || !peers[f[7]]:
		case f[4] == "*":
			opened++
		default:
			accepted++
		}
	}
	return accepted, opened
}

// beyond tells where a count lies above another. Memory, and what is made and collected by itself, are left out.
func (h held) beyond(other held) (more []string) {
	for what, n := range h {
		if what != rss && n > other[what] && !slices.Contains(lazily, what) {
			more = append(more, fmt.Sprintf("%s %g instead of %g", what, n, other[what]))
		}
	}
	slices.Sort(more)
	return more
}

// rested counts until two counts in a row are the same but for memory: what a round has begun is over then.
func rested() (now held, err error) {
	var before held
	for end := time.Now().Add(patience(settleTime)); ; time.Sleep(patience(200 * time.Millisecond)) {
		now, err = countHeld()
		if err != nil || before != nil && len(now.beyond(before)) == 0 && len(before.beyond(now)) == 0 {
			return now, err
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("what mustang holds does not come to rest: %s", strings.Join(append(now.beyond(before), before.beyond(now)...), ", "))
		}
		before = now
	}
}

// settled counts until nothing is held beyond base any more, or what is left seems to stay.
func settled(base held) (now held, err error) {
	for end := time.Now().Add(patience(settleTime)); ; time.Sleep(patience(50 * time.Millisecond)) {
		now, err = countHeld()
		if err != nil || len(now.beyond(base)) == 0 || time.Now().After(end) {
			return now, err
		}
	}
}

// Tolerances of what is flat: everything is exact but memory, which the daemon's runtime takes and gives back as it sees fit.
const (
	rssShare = 1.10
	rssMiB   = 8
)

// flat judges rounds: base is from before the first, and the others from after each, when all that it had made was gone.
func (f *figures) flat(base held, rounds []held) {
	last := rounds[len(rounds)-1]
	of, second := "before", base
	if len(rounds) > 1 {
		of, second = "after the second", rounds[1]
	}
	more := last.beyond(base)
	text := fmt.Sprintf("as at the start: %g fds (%g then), %g goroutines (%g), %g links (%g)",
		last["fds"], base["fds"], last["goroutines"], base["goroutines"], last["links"], base["links"])
	if len(more) > 0 {
		text = strings.Join(more, "; ")
	}
	f.hold("fds, goroutines, map entries, leases, links, routes, pins, nftables after the last round", text, "none beyond the start, engines' connections aside", len(more) == 0)
	limit := second[rss]*rssShare + rssMiB
	series := make([]string, len(rounds))
	for i, r := range rounds {
		series[i] = fmt.Sprintf("%.1f", r[rss])
	}
	f.hold("RSS of the daemon after the last round", fmt.Sprintf("%.1f MiB", last[rss]),
		fmt.Sprintf("≤ %.1f MiB: that %s × %.2f + %d MiB", limit, of, rssShare, rssMiB), last[rss] <= limit)
	f.state("RSS before, and after each round", fmt.Sprintf("%.1f; %s MiB", base[rss], strings.Join(series, " ")))
}

// collectTime is more than the daemon lets pass between two collections of what the datapath has made by itself.
const collectTime = 40 * time.Second

// collected waits, in a soak, for the next collection, and judges what is left.
func (f *figures) collected(base held) error {
	end := time.Now()
	if atLength {
		end = end.Add(collectTime)
	}
	for {
		now, err := countHeld()
		if err != nil {
			return err
		}
		var counts []string
		more := false
		for _, what := range lazily {
			counts = append(counts, fmt.Sprintf("%s %g", what, now[what]))
			more = more || now[what] > base[what]
		}
		if more && time.Now().Before(end) {
			time.Sleep(time.Second)
			continue
		}
		f.soaked("entries that are collected every 30 s", strings.Join(counts, ", "), "none beyond the start", !more)
		return nil
	}
}

// unixClient asks a server behind a socket. Every user closes its own idle connections.
func unixClient(path string) *http.Client {
	return &http.Client{Timeout: commandTime, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
		DisableKeepAlives:   path == metricsSocket, // its own connection would be counted
		MaxIdleConnsPerHost: crowd,
	}}
}

// crowd is how many calls a churn makes at once.
const crowd = 32

// inCrowd calls f for 0 to n-1, so many at a time as a crowd is, and returns the first errors.
func inCrowd(n int, f func(i int) error) error {
	var mu sync.Mutex
	var errs []error
	var group sync.WaitGroup
	next := make(chan int)
	for range crowd {
		group.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	group.Wait()
	if len(errs) > 3 {
		errs = append(errs[:3], fmt.Errorf("and %d more", len(errs)-3))
	}
	return errors.Join(errs...)
}

// readAll reads an answer to its end, so that its connection can be used again.
func readAll(reply *http.Response) ([]byte, error) {
	defer reply.Body.Close()
	return io.ReadAll(reply.Body)
}
