// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fake is a Host of values.
type fake struct {
	mu       sync.Mutex
	asked    int
	err      error
	hold     chan struct{} // reading drops waits for it
	drops    []Drop
	services []Service
	networks []Network
}

func (f *fake) Drops() ([]Drop, error) {
	if f.hold != nil {
		<-f.hold
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	return f.drops, f.err
}
func (f *fake) Maps() ([]Map, error)         { return []Map{{Name: "ct", Entries: 2, Max: 131072}}, nil }
func (f *fake) Services() ([]Service, error) { return f.services, nil }
func (f *fake) Networks() []Network          { return f.networks }
func (f *fake) Pools() []Pool {
	return []Pool{{Subnet: "10.201.0.0/24", Leases: 3, Addresses: 254}}
}
func (f *fake) Daemon() (Daemon, error) {
	return Daemon{Ready: true, Engine: true, Following: true, Queries: map[string]uint64{"service": 7}, Writes: 5, WritesFailed: 1, LastReload: time.Unix(1, 0)}, nil
}

func busy() *fake {
	return &fake{
		drops:    []Drop{{Reason: "isolated", Direction: "from-container", Device: 5, Network: "shop", Packets: 3, Bytes: 300}},
		networks: []Network{{"shop", "veth", 2}, {"shop", "veth", 1}}, // two of one name
		services: []Service{{Network: "shop", Name: "web", Backends: []Backend{
			{Name: "web-1", Active: true, Traffic: Traffic{4, 40, 400}}, {Name: "web-2", Traffic: Traffic{1, 10, 100}},
		}}},
	}
}

func made(t *testing.T, f *fake) (*Metrics, *logtest.Hook) {
	log, hook := logtest.NewNullLogger()
	t.Cleanup(func() {
		if f.hold == nil {
			assert.LessOrEqual(t, len(hook.AllEntries()), 1)
		}
	})
	return New(f, Build{"1.2.3", "0123abcd", "go1.26"}, log), hook
}

// used has every metric that there can be.
func used(t *testing.T) *Metrics {
	m, _ := made(t, busy())
	m.PluginCall("NetworkDriver.Join", 3*time.Millisecond, nil)
	m.CNICall("add", 30*time.Millisecond, errors.New("no"))
	m.APIRequest("GET /v1/services", time.Millisecond, nil)
	m.EventApplied(2 * time.Millisecond)
	return m
}

func TestMetricsAreAsPrometheusWantsThem(t *testing.T) {
	problems, err := testutil.GatherAndLint(used(t).registry)
	require.NoError(t, err)
	assert.Empty(t, problems)
}

func TestCatalogIsWhatIsShown(t *testing.T) {
	shown := map[string]Kind{}
	all, err := used(t).registry.Gather()
	require.NoError(t, err)
	for _, f := range all {
		if strings.HasPrefix(f.GetName(), "mustang_") {
			shown[f.GetName()] = Kind(strings.ToLower(f.GetType().String()))
		}
	}
	for _, m := range Catalog() {
		assert.Equal(t, m.Kind, shown[m.Name], m.Name)
		delete(shown, m.Name)
		assert.NotEmpty(t, m.Bound, m.Name)
	}
	assert.Empty(t, shown, "shown, but not in the catalog")
}

func TestValues(t *testing.T) {
	assert.NoError(t, testutil.GatherAndCompare(used(t).registry, strings.NewReader(`
# HELP mustang_drops_total Packets, or connections where direction is socket, that were refused, by reason.
# TYPE mustang_drops_total counter
mustang_drops_total{direction="from-container",network="shop",reason="isolated"} 3
# HELP mustang_network_endpoints Endpoints of a network.
# TYPE mustang_network_endpoints gauge
mustang_network_endpoints{mode="veth",network="shop"} 3
# HELP mustang_service_active_backends Backends of a service that get new connections now; 0: it refuses them.
# TYPE mustang_service_active_backends gauge
mustang_service_active_backends{network="shop",service="web"} 1
# HELP mustang_service_sent_bytes_total Bytes that a backend of a service has sent to clients of it.
# TYPE mustang_service_sent_bytes_total counter
mustang_service_sent_bytes_total{backend="web-1",network="shop",service="web"} 400
mustang_service_sent_bytes_total{backend="web-2",network="shop",service="web"} 100
# HELP mustang_service_writes_total Times that services were written to the maps.
# TYPE mustang_service_writes_total counter
mustang_service_writes_total{result="error"} 1
mustang_service_writes_total{result="ok"} 4
`), "mustang_drops_total", "mustang_network_endpoints", "mustang_service_active_backends", "mustang_service_sent_bytes_total", "mustang_service_writes_total"))
}

// Containers come and go: what a network has had stays counted, and nothing ever falls.
func TestDropsNeverFall(t *testing.T) {
	at := func(device int, network string, packets uint64) Drop {
		return Drop{Reason: "isolated", Direction: "to-container", Device: device, Network: network, Packets: packets}
	}
	var tally tally
	shop := dropLabels{"isolated", "to-container", "shop"}
	for i, step := range []struct {
		now  []Drop
		want uint64
	}{
		{[]Drop{at(1, "shop", 10), at(2, "shop", 5)}, 15},
		{[]Drop{at(1, "", 10), at(2, "shop", 6)}, 16},    // the device of 1 is gone, its counter is not
		{[]Drop{at(2, "shop", 6), at(3, "shop", 1)}, 17}, // its counter is gone
		{[]Drop{at(2, "shop", 2)}, 19},                   // a counter that began anew
	} {
		assert.Equal(t, step.want, tally.add(step.now, map[string]bool{"shop": true})[shop].packets, "step %d", i)
	}
	assert.NotContains(t, tally.add(nil, nil), shop, "the network is gone")
}

func TestBackendsAreBounded(t *testing.T) {
	var list []Service
	for i := range 3 {
		s := Service{Name: fmt.Sprint("s", i)}
		for j := range MaxBackends / 2 {
			s.Backends = append(s.Backends, Backend{Name: fmt.Sprint("b", j)})
		}
		list = append(list, s)
	}
	kept, left := joined(append(list[:2:2], Service{Name: "s0", Backends: []Backend{{Name: "b0", Active: true, Traffic: Traffic{Connections: 2}}}}, list[2]))
	assert.Len(t, kept, 2)
	assert.Equal(t, MaxBackends/2, left)
	assert.Equal(t, uint64(2), kept[0].Backends[0].Connections, "of one name: joined")
	assert.True(t, kept[0].Backends[0].Active)
}

func TestAFailureHidesNothingElseAndIsLoggedOnce(t *testing.T) {
	f := busy()
	f.err = errors.New("read mst_metrics: no")
	m, hook := made(t, f)
	for range 3 {
		assert.NoError(t, testutil.GatherAndCompare(m.registry, strings.NewReader(`
# HELP mustang_source_up 0 if the metrics of this source could not be read for this scrape: drops, maps, services or daemon.
# TYPE mustang_source_up gauge
mustang_source_up{source="daemon"} 1
mustang_source_up{source="drops"} 0
mustang_source_up{source="maps"} 1
mustang_source_up{source="services"} 1
`), "mustang_source_up"))
	}
	require.Len(t, hook.AllEntries(), 1)
	assert.Equal(t, logrus.WarnLevel, hook.LastEntry().Level)
}

func serve(t *testing.T, f *fake) (scrape func() (int, string), s *Server) {
	path := filepath.Join(t.TempDir(), "m.sock")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	m, _ := made(t, f)
	s = m.Serve(l)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	return func() (int, string) {
		reply, err := client.Get("http://mustang/metrics")
		if err != nil {
			return 0, err.Error()
		}
		defer reply.Body.Close()
		text, _ := io.ReadAll(reply.Body)
		return reply.StatusCode, string(text)
	}, s
}

func TestServe(t *testing.T) {
	f := busy()
	scrape, s := serve(t, f)
	assert.Zero(t, f.asked, "nobody has asked yet")
	status, text := scrape()
	assert.Equal(t, http.StatusOK, status)
	assert.Contains(t, text, `mustang_build_info{commit="0123abcd",goversion="go1.26",version="1.2.3"} 1`)
	assert.Contains(t, text, `mustang_service_connections_total{backend="web-1",network="shop",service="web"} 4`)
	assert.Contains(t, text, "go_goroutines")
	assert.Contains(t, text, "process_open_fds")
	require.NoError(t, s.Close())
	status, _ = scrape()
	assert.Zero(t, status, "closed")
}

func TestShown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	m, _ := made(t, busy())
	s := m.Serve(l)
	assert.True(t, Shown(l.Addr().String()))
	require.NoError(t, s.Close())
	assert.False(t, Shown(l.Addr().String()))
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	assert.False(t, Shown(other.Listener.Addr().String()))
}

// Whoever asks too often is refused at once, and the daemon reads for no more than two of them.
func TestScrapesAreBounded(t *testing.T) {
	f := busy()
	f.hold = make(chan struct{})
	scrape, s := serve(t, f)
	results := make(chan int)
	for range 5 {
		go func() { status, _ := scrape(); results <- status }()
	}
	for range 5 - maxScrapes {
		assert.Equal(t, http.StatusServiceUnavailable, <-results)
	}
	close(f.hold)
	for range maxScrapes {
		assert.Equal(t, http.StatusOK, <-results)
	}
	assert.Equal(t, maxScrapes, f.asked)
	require.NoError(t, s.Close())
}
