// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/service"
)

var bothEngines = []string{"1.41", "1.56"}

func id(n int) string { return fmt.Sprintf("%064x", 0xabcdef0000000000+uint64(n)) }

// web is a running container of a Compose service on our network n1 and on a bridge, as the engine's
// generation shows it.
func web(api string, n int) object {
	aliases := []string{fmt.Sprintf("shop-web-%d", n), "web", "www"}
	if api == "1.41" {
		aliases = append(aliases, id(n)[:12], "box")
	}
	return object{
		"Id": id(n), "Name": fmt.Sprintf("/shop-web-%d", n),
		"State": object{"Status": "running", "Running": true, "Pid": 0, "StartedAt": "2025-11-23T15:00:00.123456789Z"},
		"Config": object{"Hostname": "box", "Labels": object{
			"mustang.weight": "3", "com.docker.compose.service": "web"}},
		"NetworkSettings": object{"Networks": object{
			"shop_front": object{"NetworkID": "n1", "EndpointID": fmt.Sprintf("e%d", n), "Aliases": aliases,
				"IPAddress": "10.0.0.2", "IPv6Gateway": "", "GwPriority": n},
			"bridge": object{"NetworkID": "n0", "EndpointID": fmt.Sprintf("b%d", n), "Aliases": nil},
		}},
	}
}

func state(c object, s object) object {
	s["Status"], s["Running"] = "running", true
	c["State"] = s
	return c
}

// shop is an engine with our network, next to one with the IPv6 gateway that engine 20.10 writes with
// its length.
func shop(t *testing.T, api string, n int) *fakeEngine {
	e := newFakeEngine(t, api)
	e.networks = []object{
		{"Id": "n1", "Name": "shop_front", "Driver": "mustang:latest"},
		{"Id": "n0", "Name": "bridge", "Driver": "bridge", "IPAM": object{"Config": []object{{"Gateway": "fd00::1/64"}}}},
	}
	for i := 1; i <= n; i++ {
		e.run(web(api, i))
	}
	return e
}

func TestFirstList(t *testing.T) {
	for _, api := range bothEngines {
		t.Run(api, func(t *testing.T) {
			e := shop(t, api, 30)
			f := follow(t, e)
			eventually(t, func() bool { return f.synced() == 1 })
			assert.Equal(t, 30, f.atSync, "Sync comes after all of them")
			assert.Equal(t, map[string]string{"n1": "shop_front"}, f.names)
			assert.Equal(t, service.Container{
				ID: id(7), Name: "shop-web-7", Phase: service.PhaseReady, Source: service.SourceDocker,
				Labels:  map[string]string{"mustang.weight": "3"},
				Aliases: map[string][]string{"e7": {"web", "www"}}, Priorities: map[string]int{"e7": 7},
				Started: time.Date(2025, 11, 23, 15, 0, 0, 123456789, time.UTC),
			}, f.containers[id(7)])
			e.mu.Lock()
			defer e.mu.Unlock()
			assert.LessOrEqual(t, e.most, maxInspects)
		})
	}
}

// TestCollect lists what the engine has of our networks, and of no others.
func TestCollect(t *testing.T) {
	e := newFakeEngine(t, "1.56")
	e.networks = []object{{"Id": "n1", "Name": "a", "Driver": "mustang"},
		{"Id": "n2", "Name": "b", "Driver": "bridge", "IPAM": object{"Driver": "mustang", "Config": []object{{"Subnet": "10.1.0.0/24"}, {"Subnet": "fd00::/64"}}}},
		{"Id": "n3", "Name": "c", "Driver": "mustang:latest", "IPAM": object{"Driver": "default", "Config": []object{{"Subnet": "10.2.0.0/24"}}}}}
	e.attached = map[string]map[string]string{"n1": {"web": "e1", "db": "e2"}, "n2": {"x": "e9"}}
	f := follow(t, e)
	want := map[string]map[string]bool{"n1": {"e1": true, "e2": true}, "n3": {}}
	subnets := map[netip.Prefix]bool{netip.MustParsePrefix("10.1.0.0/24"): true, netip.MustParsePrefix("fd00::/64"): true}
	eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return assert.ObjectsAreEqual(want, f.known) && assert.ObjectsAreEqual(subnets, f.subnets)
	})
}

func TestEmptyEngineSyncs(t *testing.T) {
	e := newFakeEngine(t, "1.56")
	f := follow(t, e)
	eventually(t, func() bool { return f.synced() == 1 })
}

// TestBoot starts before the engine serves its API.
func TestBoot(t *testing.T) {
	e := shop(t, "1.56", 1)
	e.unreachable = true
	f := follow(t, e, func(w *Watcher) { w.timing.call = 20 * time.Millisecond })
	time.Sleep(60 * time.Millisecond)
	assert.Zero(t, f.synced())
	e.mu.Lock()
	e.unreachable = false
	e.mu.Unlock()
	eventually(t, func() bool { return f.phase(id(1)) == service.PhaseReady })
}

// TestStop plays `docker stop` in the order of each generation.
func TestStop(t *testing.T) {
	for api, order := range map[string]string{"1.41": "kill die disconnect stop", "1.56": "kill disconnect stop die"} {
		t.Run(api, func(t *testing.T) {
			e := shop(t, api, 1)
			f := follow(t, e)
			eventually(t, func() bool { return f.synced() == 1 })
			for _, action := range strings.Fields(order) {
				switch action {
				case "kill":
					e.emit(id(1), "kill", "signal", "15")
					eventually(t, func() bool { return f.phase(id(1)) == service.PhaseDraining })
					e.stop(id(1))
				case "disconnect":
					e.emitNetwork("n1", "disconnect", "container", id(1), "name", "shop_front", "type", "mustang:latest")
				default:
					e.emit(id(1), action)
				}
			}
			e.emitNetwork("n2", "create", "name", "last", "type", "mustang")
			eventually(t, func() bool { return f.name("n2") == "last" }, "all events have been read")
			assert.Equal(t, service.PhaseStopped, f.phase(id(1)))
			e.run(web(api, 1))
			e.emitNetwork("n1", "connect", "container", id(1), "name", "shop_front", "type", "mustang:latest")
			e.emit(id(1), "start")
			eventually(t, func() bool { return f.phase(id(1)) == service.PhaseReady })
			assert.Equal(t, []service.Phase{"ready", "draining", "stopped", "ready"}, f.phases[id(1)])
			e.remove(id(1))
			e.emit(id(1), "destroy")
			eventually(t, func() bool { return f.phase(id(1)) == "" })
			assert.Equal(t, []string{id(1)}, f.removed)
			assert.Equal(t, 1, f.synced())
		})
	}
}

func TestSignals(t *testing.T) {
	for _, c := range []struct {
		stop, sent string
		want       service.Phase
	}{
		{"", "15", service.PhaseDraining},
		{"", "SIGTERM", service.PhaseDraining},
		{"", "term", service.PhaseDraining},
		{"", "9", service.PhaseDraining},
		{"SIGQUIT", "KILL", service.PhaseDraining},
		{"SIGQUIT", "3", service.PhaseDraining},
		{"SIGRTMIN+3", "37", service.PhaseDraining},
		{"RTMAX-1", "63", service.PhaseDraining},
		{"SIGQUIT", "15", service.PhaseReady},
		{"", "HUP", service.PhaseReady},
		{"", "1", service.PhaseReady},
		{"", "", service.PhaseReady},
		{"", "nonsense", service.PhaseReady},
	} {
		t.Run(c.stop+"/"+c.sent, func(t *testing.T) {
			e := newFakeEngine(t, "1.56")
			e.networks = []object{{"Id": "n1", "Name": "shop_front", "Driver": "mustang"}}
			first := web("1.56", 1)
			first["Config"].(object)["StopSignal"] = c.stop
			e.run(first)
			e.run(web("1.56", 2))
			f := follow(t, e)
			eventually(t, func() bool { return f.synced() == 1 })
			e.emit(id(1), "kill", "signal", c.sent)
			e.emit(id(2), "pause") // marks that the event before has been read
			eventually(t, func() bool { return f.phase(id(2)) == service.PhasePaused })
			assert.Equal(t, c.want, f.phase(id(1)))
		})
	}
}

// TestSurvivedSignal has a container that ignores `docker kill --signal TERM`.
func TestSurvivedSignal(t *testing.T) {
	e := shop(t, "1.56", 1)
	f := follow(t, e, func(w *Watcher) { w.timing.stop, w.timing.drainMore = 20*time.Millisecond, 0 })
	eventually(t, func() bool { return f.synced() == 1 })
	e.emit(id(1), "kill", "signal", "15")
	eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return assert.ObjectsAreEqual([]service.Phase{"ready", "draining", "ready"}, f.phases[id(1)])
	})
}

func TestHealth(t *testing.T) {
	e := shop(t, "1.56", 0)
	e.run(state(web("1.56", 1), object{"Health": object{"Status": "starting"}}))
	f := follow(t, e)
	eventually(t, func() bool { return f.phase(id(1)) == service.PhaseStarting })
	for range 100 {
		e.emit(id(1), "exec_create: /bin/sh -c check")
		e.emit(id(1), "exec_start: /bin/sh -c check")
	}
	e.emit(id(1), "health_status: healthy")
	eventually(t, func() bool { return f.phase(id(1)) == service.PhaseReady })
	e.emit(id(1), "health_status: unhealthy")
	eventually(t, func() bool { return f.phase(id(1)) == service.PhaseUnhealthy })
	e.emit(id(1), "pause")
	eventually(t, func() bool { return f.phase(id(1)) == service.PhasePaused })
	e.run(state(web("1.56", 1), object{"Health": object{"Status": "unhealthy"}}))
	e.emit(id(1), "unpause")
	eventually(t, func() bool { return f.phase(id(1)) == service.PhaseUnhealthy })
	assert.LessOrEqual(t, e.inspects[id(1)], 2)
}

// TestListRace has a container stop while the list that shows it running is on its way.
func TestListRace(t *testing.T) {
	e := shop(t, "1.41", 2)
	e.onList = func() {
		e.stop(id(1))
		e.emit(id(1), "die")
		e.remove(id(2))
		e.emit(id(2), "die")
		e.emit(id(2), "destroy")
		e.run(web("1.41", 3))
		e.emit(id(3), "start")
	}
	f := follow(t, e)
	eventually(t, func() bool { return f.phase(id(3)) == service.PhaseReady })
	eventually(t, func() bool { return f.synced() == 1 })
	eventually(t, func() bool { return f.phase(id(1)) == service.PhaseStopped })
	assert.Empty(t, f.phase(id(2)))
}

// TestStaleInspect has an inspect answer "running" after the container has died.
func TestStaleInspect(t *testing.T) {
	e := shop(t, "1.56", 1)
	f := follow(t, e)
	eventually(t, func() bool { return f.synced() == 1 })
	release := e.hold(id(1))
	e.emit(id(1), "rename", "oldName", "/x")
	eventually(t, func() bool { e.mu.Lock(); defer e.mu.Unlock(); return e.inspects[id(1)] == 2 })
	e.emit(id(1), "die")
	eventually(t, func() bool { return f.phase(id(1)) == service.PhaseStopped })
	e.stop(id(1))
	release()
	eventually(t, func() bool { e.mu.Lock(); defer e.mu.Unlock(); return e.inspects[id(1)] == 3 })
	assert.Equal(t, []service.Phase{"ready", "stopped"}, f.phases[id(1)])
}

// TestLostConnection has things change while nobody listens.
func TestLostConnection(t *testing.T) {
	for _, api := range bothEngines {
		e := shop(t, api, 3)
		f := follow(t, e)
		eventually(t, func() bool { return f.synced() == 1 })
		e.mu.Lock()
		e.unreachable = true
		e.mu.Unlock()
		e.cut()
		e.server.CloseClientConnections()
		e.stop(id(1))
		e.remove(id(2))
		e.run(web(api, 4))
		e.mu.Lock()
		e.unreachable = false
		e.mu.Unlock()
		eventually(t, func() bool {
			return f.phase(id(1)) == service.PhaseStopped && f.phase(id(2)) == "" &&
				f.phase(id(3)) == service.PhaseReady && f.phase(id(4)) == service.PhaseReady
		})
		assert.Equal(t, 1, f.synced(), "Sync is for the first list only")
	}
}

// TestLockedContainers has more containers hang in their start than inspects may run.
func TestLockedContainers(t *testing.T) {
	e := shop(t, "1.56", 40)
	var release []func()
	for i := 1; i <= 20; i++ {
		release = append(release, e.hold(id(i)))
	}
	f := follow(t, e, func(w *Watcher) { w.timing.inspect = 20 * time.Millisecond })
	for i := 21; i <= 40; i++ {
		eventually(t, func() bool { return f.phase(id(i)) == service.PhaseReady })
	}
	assert.Zero(t, f.synced())
	for _, r := range release {
		r()
	}
	eventually(t, func() bool { return f.synced() == 1 })
	assert.Equal(t, 40, f.atSync)
}

// TestBurst has many events of one container make few inspects.
func TestBurst(t *testing.T) {
	e := shop(t, "1.56", 1)
	f := follow(t, e)
	eventually(t, func() bool { return f.synced() == 1 })
	release := e.hold(id(1))
	for range 500 {
		e.emit(id(1), "rename")
	}
	e.emitNetwork("n2", "create", "name", "last", "type", "mustang")
	eventually(t, func() bool { return f.name("n2") == "last" })
	release()
	time.Sleep(20 * time.Millisecond)
	e.mu.Lock()
	defer e.mu.Unlock()
	assert.LessOrEqual(t, e.inspects[id(1)], 3)
}

func TestConnectAndRename(t *testing.T) {
	e := shop(t, "1.56", 0)
	c := web("1.56", 1)
	nets := c["NetworkSettings"].(object)["Networks"].(object)
	front := nets["shop_front"]
	delete(nets, "shop_front")
	e.run(c)
	f := follow(t, e)
	eventually(t, func() bool { return f.synced() == 1 })
	assert.Empty(t, f.containers, "a container on other networks is none of ours")

	joined := web("1.56", 1)
	joined["NetworkSettings"] = object{"Networks": object{"shop_front": front}}
	e.run(joined)
	e.emitNetwork("n1", "connect", "container", id(1), "name", "shop_front", "type", "mustang:latest")
	eventually(t, func() bool { return f.phase(id(1)) == service.PhaseReady })

	renamed := web("1.56", 1)
	renamed["Name"] = "/web"
	e.run(renamed)
	e.emit(id(1), "rename", "oldName", "/shop-web-1", "name", "web")
	eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return assert.ObjectsAreEqual(map[string][]string{"e1": {"shop-web-1", "www"}}, f.containers[id(1)].Aliases)
	})

	e.run(c)
	e.emitNetwork("n1", "disconnect", "container", id(1), "name", "shop_front", "type", "mustang:latest")
	eventually(t, func() bool { return f.phase(id(1)) == "" })
	assert.Equal(t, []string{id(1)}, f.removed)
}

// TestProcessEnds kills a real process: its endpoint is gone without any event, and does not come back
// by an inspect that the engine answers from before.
func TestProcessEnds(t *testing.T) {
	cmd := exec.Command("sleep", "600")
	require.NoError(t, cmd.Start())
	e := shop(t, "1.56", 0)
	e.run(state(web("1.56", 1), object{"Pid": cmd.Process.Pid}))
	x, err := newExits()
	require.NoError(t, err)
	x.owns = func(pid int, container string) bool { return pid == cmd.Process.Pid && container == id(1) }
	f := follow(t, e, func(w *Watcher) { w.exits = x })
	eventually(t, func() bool { return f.synced() == 1 })
	eventually(t, func() bool { x.mu.Lock(); defer x.mu.Unlock(); return len(x.fds) == 1 })
	require.NoError(t, cmd.Process.Kill())
	eventually(t, func() bool { return f.phase(id(1)) == service.PhaseStopped }, "as a zombie already")
	assert.Equal(t, []string{"e1"}, f.gone)
	cmd.Wait()
	e.emit(id(1), "oom")
	eventually(t, func() bool { e.mu.Lock(); defer e.mu.Unlock(); return e.inspects[id(1)] == 2 })
	time.Sleep(20 * time.Millisecond)
	assert.Equal(t, service.PhaseStopped, f.phase(id(1)))
	x.mu.Lock()
	defer x.mu.Unlock()
	assert.Empty(t, x.fds)
}

func TestForeignProcessIsNotWatched(t *testing.T) {
	x, err := newExits()
	require.NoError(t, err)
	done := make(chan struct{})
	go func() { x.run(); close(done) }()
	_, err = x.add(1, id(1), func() { t.Error("told of a foreign process") })
	assert.Error(t, err)
	assert.Empty(t, x.fds)
	x.close()
	<-done
	x.close() // does nothing
}

func TestCleanAliases(t *testing.T) {
	for _, c := range []struct {
		what, name, hostname string
		aliases, want        []string
	}{
		{"engine 29", "/shop-web-1", "box", []string{"shop-web-1", "web", "www"}, []string{"web", "www"}},
		{"engine 20.10", "/shop-web-1", "box", []string{"shop-web-1", "web", "IDIDID", "box"}, []string{"web"}},
		{"hostname asked for as alias, 20.10", "/c", "web", []string{"web", "IDIDID"}, []string{"web"}},
		{"hostname asked for as alias, 29", "/c", "web", []string{"web"}, []string{"web"}},
		{"default hostname", "/c", id(1)[:12], []string{"web", "IDIDID"}, []string{"web"}},
		{"whole id", "/c", "", []string{id(1), id(1)[:20]}, []string{}},
		{"looks like an id", "/c", "", []string{"abcdef", "abcdefabcdef"}, []string{"abcdef", "abcdefabcdef"}},
		{"own name, in another case, and repeats", "/Web", "", []string{"web", "www", "WWW", ""}, []string{"www"}},
		{"none", "/c", "h", nil, []string{}},
	} {
		t.Run(c.what, func(t *testing.T) {
			var in container
			in.ID, in.Name, in.Config.Hostname = id(1), c.name, c.hostname
			aliases := append([]string(nil), c.aliases...)
			for i := range aliases {
				aliases[i] = strings.ReplaceAll(aliases[i], "IDIDID", id(1)[:12])
			}
			assert.Equal(t, c.want, cleanAliases(in, aliases))
		})
	}
}

func TestIsDriver(t *testing.T) {
	for driver, want := range map[string]bool{
		"mustang": true, "mustang:latest": true, "registry.example:5000/net/mustang:1.2": true,
		"bridge": false, "mustang2": false, "mustang2:latest": false, "": false,
	} {
		assert.Equal(t, want, isDriver(driver, "mustang"), driver)
	}
}

// TestRevive: what failed to start while no daemon was there is started, and nothing else.
func TestRevive(t *testing.T) {
	const absent, down = `failed to add endpoint: plugin "mustang" not found`, "NetworkDriver.CreateEndpoint: mustang is not ready: it is still starting"
	const broken = `Post "http://%2Frun%2Fdocker%2Fplugins%2Fmustang.sock/IpamDriver.RequestAddress": EOF`
	cases := []struct {
		policy, failure, startedAt string
		want                       bool
	}{
		{policy: "always", failure: absent, want: true},
		{policy: "unless-stopped", failure: down, want: true},
		{policy: "unless-stopped", failure: broken, want: true},
		{policy: "always"}, // stopped by a user
		{policy: "no", failure: absent},
		{policy: "on-failure", failure: absent},
		{policy: "always", failure: "NetworkDriver.ProgramExternalConnectivity: port 80 is taken by web"},
		{policy: "always", failure: absent, startedAt: "0001-01-01T00:00:00Z"}, // refused to whom made it
	}
	e := shop(t, "1.56", 0)
	var want []string
	for i, tt := range cases {
		if tt.startedAt == "" {
			tt.startedAt = "2025-11-23T15:00:00Z"
		}
		c := web("1.56", i)
		c["State"] = object{"Status": "exited", "StartedAt": tt.startedAt, "Error": tt.failure}
		c["HostConfig"] = object{"RestartPolicy": object{"Name": tt.policy}}
		e.stopped[id(i)] = c
		if tt.want {
			want = append(want, id(i))
		}
	}
	started := func() []string {
		e.mu.Lock()
		defer e.mu.Unlock()
		return slices.Sorted(slices.Values(e.started))
	}
	follow(t, e)
	eventually(t, func() bool { return len(started()) >= len(want) })
	time.Sleep(50 * time.Millisecond)
	assert.Equal(t, want, started())
}

// TestListening: a listening socket is told from its connections, and from others.
func TestListening(t *testing.T) {
	dir, err := os.MkdirTemp("", "mst")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "mst-test.sock")
	assert.Empty(t, listening("/proc/net/unix", "mst-test.sock"))
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	c, err := net.Dial("unix", path)
	require.NoError(t, err)
	defer c.Close()
	found := listening("/proc/net/unix", "mst-test.sock")
	assert.Len(t, found, 1)
	assert.True(t, holds("/proc/self", found))
	assert.False(t, stopped(path), "process 1 has nothing to do with it")
	l.Close()
	assert.Empty(t, listening("/proc/net/unix", "mst-test.sock"))
	assert.False(t, holds("/proc/self", found))
}
