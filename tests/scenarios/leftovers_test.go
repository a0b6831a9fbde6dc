// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// settleTime is how long the kernel and the engine may take to let go of what was removed.
const settleTime = 5 * time.Second

// snapshot is everything of mustang that is on the host, one line a thing: links, routes, pins, netns, tables, processes, and the
// numbers of map entries, networks, endpoints, services, pools and leases.
func snapshot() ([]string, error) {
	var all []string
	add := func(kind string, lines ...string) {
		for _, line := range lines {
			all = append(all, kind+" "+line)
		}
	}
	add("link", matching(`mustang:|group 7172980|\b(mst|msp|msb|msh|msd|mpa|mpb)[0-9a-z]`, "ip", "-o", "link")...)
	add("netns", matching(`.`, "sh", "-c", "ip netns list | cut -d' ' -f1")...)
	add("sandbox", matching(`/docker/netns/[0-9a-f]+$`, "findmnt", "-rn", "-t", "nsfs", "-o", "TARGET")...)
	add("route", matching(`.`, "ip", "route", "show", "table", "all", "proto", "205")...)
	add("route", matching(`.`, "ip", "-6", "route", "show", "table", "all", "proto", "205")...)
	add("rule", matching(`205|mst`, "ip", "rule")...)
	add("CNI", matching(`.`, "sh", "-c", "find /etc/cni/ -type f")...)
	add("file", matching(`.`, "sh", "-c", "find /var/lib/mustang /run/mustang /run/docker/plugins /etc/cni -name '.?*' 2>/dev/null || true")...)
	pins, _ := filepath.Glob("/sys/fs/bpf/tc/globals/*")
	add("pin", pins...)
	add("nft", matching(`mustang|mst`, "nft", "list", "tables")...)
	add("rule of the engine's chain", matching(`mst|msb|mustang`, "sh", "-c", "iptables -S DOCKER-USER; ip6tables -S DOCKER-USER")...)
	add("process", matching(`^(mst-|mustang|containerd-shim|iperf3|mst_)`, "ps", "-e", "-o", "comm=")...)
	counts, err := statusCounts()
	add("count", counts...)
	slices.Sort(all)
	return all, err
}

// matching are the lines of a command's output in which the pattern is found.
func matching(pattern string, argv ...string) (lines []string) {
	out, err := exec.Command(argv[0], argv[1:]...).Output()
	if err != nil {
		return []string{fmt.Sprintf("%s: %v", strings.Join(argv, " "), err)}
	}
	re := regexp.MustCompile(pattern)
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); re.MatchString(line) {
			lines = append(lines, line)
		}
	}
	return lines
}

// statusCounts are the numbers in `mustang status`, but for those that only grow, and those of caches and of the engine's events.
func statusCounts() ([]string, error) {
	r := run("/", "mustang", "status", "-o", "json")
	var status struct {
		Daemon     bool
		Subsystems []struct{ Name, Detail string }
	}
	if err := json.Unmarshal([]byte(r.stdout), &status); err != nil || status.Daemon && r.err != nil { // without a daemon it is not ready
		return nil, fmt.Errorf("mustang status: %w: %s", errors.Join(err, r.err), r.stderr)
	}
	var counts []string
	for _, part := range status.Subsystems {
		if !slices.Contains([]string{"drops", "events", "flows", "docker"}, part.Name) {
			for item := range strings.SplitSeq(part.Detail, ", ") {
				counts = append(counts, part.Name+": "+item)
			}
		}
	}
	return counts, nil
}

// leftovers says what is on the host beyond the baseline, or missing from it, after everything was removed and some time has passed.
func leftovers(baseline []string, settle time.Duration) (left []string) {
	for end := time.Now().Add(patience(settle)); ; time.Sleep(patience(50 * time.Millisecond)) {
		now, err := snapshot()
		left = nil
		if err != nil {
			left = append(left, err.Error())
		}
		left = append(left, without(now, baseline, "left: ")...)
		left = append(left, without(baseline, now, "gone: ")...)
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

func without(lines, others []string, label string) (out []string) {
	counts := map[string]int{}
	for _, line := range others {
		counts[line]++
	}
	for _, line := range lines {
		if counts[line]--; counts[line] < 0 {
			out = append(out, label+line)
		}
	}
	return out
}

// tearDown removes all that a scenario may have made, as a user would: containers, networks, services, its own namespaces, and devices
// called cable….
func tearDown() {
	shell(`"$0" stop`, checkout("tests/systemd"))
	if exec.Command("pgrep", "-x", "mustang").Run() != nil {
		shell(`"$0" daemon start`, fakehost())
	}
	if reply, err := askEngine.Get("http://engine/_ping"); err == nil {
		reply.Body.Close()
	} else {
		shell(`"$0" engine start`, fakehost())
	}
	shell(`ids=$(docker ps -aq); if [ "$ids" ]; then docker rm -fv $ids; fi`)
	shell(`docker network ls --filter type=custom --format '{{.Name}}' | grep -vx docker_gwbridge | xargs -r docker network rm`)
	if _, err := os.Stat("/run/containerd.pid"); err == nil {
		shell(`kill -0 $(cat /run/containerd.pid) 2>/dev/null || "$0" containerd start; ids=$(nerdctl ps -aq); if [ "$ids" ]; then nerdctl rm -f $ids; fi`, fakehost())
	}
	shell(`rm -rf /etc/cni/net.d`)
	shell(`if [ -e /etc/mustang/mustang.toml ]; then rm /etc/mustang/mustang.toml; kill -HUP $(pgrep -x mustang); fi`)
	shell(`echo '[]' | mustang svc apply -f -`)
	shell(`ls /sys/class/net | grep -E '^cable[0-9]+$' | xargs -rn1 ip link del 2>/dev/null; ip -n lan -br link | grep -o '^cable[^ @]*' | xargs -rn1 ip -n lan link del 2>/dev/null; true`)
	shell(`for ns in $(ip netns list | cut -d' ' -f1); do if [ $ns != lan ]; then ip netns pids $ns | xargs -r kill; ip netns delete $ns; fi; done`)
}

// shell runs a script. Its failure is seen in what is left.
func shell(script string, args ...string) {
	out, err := exec.Command("sh", append([]string{"-c", script}, args...)...).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "No such container") {
		fmt.Fprintf(os.Stderr, "teardown: %v: %s\n", err, out)
	}
}

// fakehost is the script that starts and stops the engine and the daemon.
func fakehost() string { return checkout("tests/fakehost") }

// checkout is a path in the project.
func checkout(path string) string {
	self, err := os.Executable() // bin/scenarios.test
	if err != nil {
		return path
	}
	return filepath.Join(filepath.Dir(filepath.Dir(self)), path)
}
