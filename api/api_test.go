// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/api/apitest"
	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/driver/cni"
	"github.com/mustang-net/mustang/service"
	"github.com/mustang-net/mustang/state"
)

// shortDir is a directory whose name leaves room for a socket's path.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mst")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func quiet() logrus.FieldLogger {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return log
}

// daemon serves host on a real socket, and checks at the end that it stops cleanly and leaves nothing.
func daemon(t *testing.T, host api.Host) (api.Host, string) {
	t.Helper()
	return daemonWith(t, host, quiet())
}

func daemonWith(t *testing.T, host api.Host, log logrus.FieldLogger) (api.Host, string) {
	t.Helper()
	path := filepath.Join(shortDir(t), "run", "mustang.sock")
	l, err := api.Listen(path)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- api.Serve(ctx, l, host, log, nil) }()
	t.Cleanup(func() {
		stop()
		assert.NoError(t, <-done)
		left, err := os.ReadDir(filepath.Dir(path))
		assert.NoError(t, err)
		assert.Empty(t, left, "left in the socket's directory")
	})
	client, err := api.Dial(path)
	require.NoError(t, err)
	return client, path
}

func frontend(s, protocol string) bpf.Frontend {
	p, _ := bpf.ParseProtocol(protocol)
	a := netip.MustParseAddrPort(s)
	return bpf.Frontend{Addr: a.Addr(), Port: a.Port(), Protocol: p}
}

func TestEveryMethodRoundTrips(t *testing.T) {
	host := &apitest.Host{
		ServiceList: []service.View{{
			ID: 7, Source: service.SourceDocker, Name: "web", Network: "shop", Affinity: 60,
			Frontends: []bpf.Frontend{frontend("10.96.1.2:80", "tcp"), frontend("[fd00::2]:53", "udp"), frontend("10.96.1.3:0", "")},
			Backends: []service.BackendView{
				{ID: 3, Addr: netip.MustParseAddrPort("10.201.0.2:0"), Weight: 5, State: service.PhaseReady, Active: true, Container: "shop-web-1"},
				{ID: 4, Addr: netip.MustParseAddrPort("[fd00::9]:0"), Weight: 1, State: service.PhaseUnhealthy},
			},
		}},
		EndpointList: []api.Endpoint{{Number: 9, NetworkName: "shop", Container: "shop-web-1", Endpoint: driver.Endpoint{
			ID: "abc", NetworkID: "n1", Source: "docker", IPv4: netip.MustParsePrefix("10.201.0.2/24"),
			MAC: "02:42:0a:c9:00:02", HostMAC: "3e:e9:02:96:60:d6", HostIf: "mst1", PeerIf: "mst1p", Index: 12,
			Sandbox: "/var/run/docker/netns/x", Cookie: 1 << 60, Options: map[string]string{"mustang.vip": "off"},
		}}},
		NetworkList: []api.Network{{ID: "n1", Name: "shop", Number: 2, Mode: "veth", Subnets: []string{"10.201.0.0/24"},
			VIPs: []string{"10.96.1.0/24"}, Options: map[string]string{"mode": "veth"}, Endpoints: 1, Services: 1}},
		PortList: []api.Port{{
			Protocol: "tcp", Host: netip.MustParseAddrPort("0.0.0.0:8080"), Port: 80, Count: 2, Endpoint: "abc", Container: "shop-web-1",
			NetworkID: "n1", NetworkName: "shop", Addresses: []netip.Addr{netip.MustParseAddr("10.201.0.2")},
			State: service.PhaseReady, Active: true,
			Reach: api.ReachSources, Sources: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Uplinks: []string{"eth0 192.0.2.1"},
		}},
		State: api.Status{Version: "1.2.3", Daemon: true, Ready: true, Subsystems: []api.Subsystem{{Name: "maps", State: "ok", Detail: "pinned"}}},
	}
	client, _ := daemon(t, host)
	ctx := t.Context()

	services, err := client.Services(ctx)
	require.NoError(t, err)
	assert.Equal(t, host.ServiceList, services)
	endpoints, err := client.Endpoints(ctx)
	require.NoError(t, err)
	assert.Equal(t, host.EndpointList, endpoints)
	networks, err := client.Networks(ctx)
	require.NoError(t, err)
	assert.Equal(t, host.NetworkList, networks)
	ports, err := client.Ports(ctx)
	require.NoError(t, err)
	assert.Equal(t, host.PortList, ports)
	status, err := client.Status(ctx)
	require.NoError(t, err)
	assert.Equal(t, host.State, status)

	spec := service.Spec{Name: "iperf", Frontend: frontend("10.96.0.100:5201", "tcp"), Affinity: 10, Backends: []service.Target{
		{Addr: netip.MustParseAddrPort("192.168.10.10:5201"), Weight: 3},
		{Addr: netip.MustParseAddrPort("192.168.10.11:0"), Drain: true},
	}}
	direct, err := new(apitest.Host).AddService(ctx, spec)
	require.NoError(t, err)
	added, err := client.AddService(ctx, spec)
	require.NoError(t, err)
	assert.Equal(t, uint32(8), added.ID)
	direct.ID = added.ID
	for i := range direct.Backends {
		direct.Backends[i].ID = added.Backends[i].ID
	}
	assert.Equal(t, direct, added, "the same with and without a daemon")

	applied, err := client.ApplyServices(ctx, []service.Spec{spec, {Frontend: frontend("[fd00::1]:80", "")}})
	require.NoError(t, err)
	assert.Equal(t, api.Applied{Added: 1, Unchanged: 1}, applied)
	applied, err = client.ApplyServices(ctx, []service.Spec{spec})
	require.NoError(t, err)
	assert.Equal(t, api.Applied{Unchanged: 1, Removed: 1}, applied)

	require.NoError(t, client.Drain(ctx, "192.168.10.10:5201", false))
	assert.Equal(t, map[string]int{"192.168.10.10:5201": 1}, host.Drained)
	require.NoError(t, client.Drain(ctx, "192.168.10.10:5201", true))
	assert.Empty(t, host.Drained)

	require.NoError(t, client.RemoveService(ctx, "tcp:10.96.0.100:5201"))
	ep, err := client.AddEndpoint(ctx, "eth0", "/var/run/netns/pod a&b")
	require.NoError(t, err)
	assert.Equal(t, "/var/run/netns/pod a&b", ep.Sandbox)
	require.NoError(t, client.RemoveEndpoint(ctx, ep.IPv4.Addr().String()))
	assert.Len(t, host.ServiceList, 1)
	assert.Len(t, host.EndpointList, 1)
}

func TestServiceJSONIsStable(t *testing.T) {
	v := service.View{ID: 1, Source: service.SourceHand,
		Frontends: []bpf.Frontend{frontend("10.96.0.100:5201", "")},
		Backends: []service.BackendView{{ID: 1, Addr: netip.MustParseAddrPort("192.168.10.10:5201"), Weight: 1,
			State: service.PhaseReady, Active: true}}}
	text, err := json.Marshal(api.ServicesOf([]service.View{v}))
	require.NoError(t, err)
	assert.Equal(t, `[{"id":1,"source":"svc","frontends":[{"address":"10.96.0.100","port":5201,"protocol":"any"}],`+
		`"backends":[{"id":1,"address":"192.168.10.10:5201","weight":1,"state":"ready","active":true}]}]`, string(text))
	text, err = json.Marshal(api.ServicesOf(nil))
	require.NoError(t, err)
	assert.Equal(t, `[]`, string(text))
}

func TestErrorsKeepTheirTextAndClass(t *testing.T) {
	host := &apitest.Host{}
	client, _ := daemon(t, host)
	ctx := t.Context()
	status := func(err error) int {
		var refused *api.Error
		require.ErrorAs(t, err, &refused)
		return refused.Status
	}

	err := client.RemoveService(ctx, "web")
	assert.EqualError(t, err, "remove service web: no hand-made service has this frontend, id or name")
	assert.Equal(t, http.StatusNotFound, status(err))

	spec := service.Spec{Frontend: frontend("10.96.0.1:1", "")}
	_, err = client.AddService(ctx, spec)
	require.NoError(t, err)
	_, err = client.AddService(ctx, spec)
	assert.Equal(t, http.StatusConflict, status(err))

	_, err = client.AddService(ctx, service.Spec{Frontend: frontend("127.0.0.1:1", "")})
	assert.ErrorContains(t, err, "cannot be a virtual IP")
	assert.Equal(t, http.StatusBadRequest, status(err), "the daemon checks, whoever asks")

	host.Fail = fmt.Errorf("service web: %w", service.ErrNotFound)
	_, err = client.Services(ctx)
	assert.Equal(t, http.StatusNotFound, status(err))
	host.Fail = context.DeadlineExceeded
	_, err = client.Services(ctx)
	assert.Equal(t, http.StatusServiceUnavailable, status(err))

	host.Fail = errors.New("disk full")
	_, err = client.Status(ctx)
	assert.ErrorContains(t, err, "disk full (request ")
	assert.Equal(t, http.StatusInternalServerError, status(err))
}

// refusing attaches nothing.
type refusing struct{ cni.Host }

func (refusing) Add(context.Context, cni.Attachment) (cni.Attached, error) {
	return cni.Attached{}, fmt.Errorf("no network shop")
}

// What went wrong in the daemon, and what a runtime hands on, is found in the log by the number that the error has; what somebody
// has typed wrong is not logged.
func TestErrorsLeadToTheLog(t *testing.T) {
	log, hook := test.NewNullLogger()
	host := &apitest.Host{Fail: errors.New("disk full"), Runtimes: refusing{}}
	client, _ := daemonWith(t, host, log)
	_, err := client.Status(t.Context())
	in := func(err error) string {
		require.Len(t, hook.AllEntries(), 1)
		entry := hook.LastEntry()
		hook.Reset()
		assert.Equal(t, logrus.ErrorLevel, entry.Level)
		assert.ErrorContains(t, err, fmt.Sprintf("(request %s)", entry.Data["request"]))
		return fmt.Sprint(entry.Data["method"], " ", entry.Data[logrus.ErrorKey])
	}
	assert.Equal(t, "GET /v1/status disk full", in(err))

	_, err = client.CNI().Add(t.Context(), cni.Attachment{})
	assert.Equal(t, "POST /v1/cni/add no network shop", in(err))

	host.Fail = nil
	assert.Error(t, client.RemoveService(t.Context(), "web"))
	assert.Empty(t, hook.AllEntries())
}

// realServices is a Host whose services are a manager's.
type realServices struct {
	*apitest.Host
	services *service.Manager
}

func (h realServices) AddService(_ context.Context, spec service.Spec) (service.View, error) {
	return h.services.Add(spec)
}

func (h realServices) RemoveService(_ context.Context, ref string) error {
	return h.services.Remove(ref)
}

func (h realServices) Drain(_ context.Context, ref string, undo bool) error {
	return h.services.Drain(ref, undo)
}

// noMaps take nothing while broken, and keep nothing.
type noMaps struct{ broken error }

func (m *noMaps) Services() ([]bpf.Service, error) { return nil, nil }
func (m *noMaps) Backends() ([]bpf.Backend, error) { return nil, nil }
func (m *noMaps) PutService(bpf.Service) error     { return m.broken }
func (m *noMaps) DeleteService(bpf.Frontend) error { return m.broken }
func (m *noMaps) PutBackend(bpf.Backend) error     { return m.broken }
func (m *noMaps) DeleteBackend(uint32) error       { return m.broken }

func TestRefusalsOfServicesAreNoFaults(t *testing.T) {
	maps := &noMaps{}
	services, err := service.New(state.Memory(), maps, service.Options{})
	require.NoError(t, err)
	log, hook := test.NewNullLogger()
	client, _ := daemonWith(t, realServices{&apitest.Host{}, services}, log)
	ctx := t.Context()
	add := func(vip, backend string) error {
		_, err := client.AddService(ctx, service.Spec{Frontend: frontend(vip, "tcp"),
			Backends: []service.Target{{Addr: netip.MustParseAddrPort(backend)}}})
		return err
	}
	require.NoError(t, add("10.96.0.1:80", "10.1.0.1:80"))
	for _, tt := range []struct {
		err    error
		status int
		text   string
	}{
		{add("8.8.8.8:80", "10.1.0.1:80"), http.StatusBadRequest, "outside the service pools"},
		{add("10.96.0.1:80", "10.1.0.1:80"), http.StatusConflict, "exists already"},
		{add("10.1.0.1:80", "10.1.0.2:80"), http.StatusConflict, "is a backend of service"},
		{client.RemoveService(ctx, "10.96.0.9:80"), http.StatusNotFound, "not found"},
		{client.Drain(ctx, "10.9.9.9", false), http.StatusNotFound, "not found"},
	} {
		var refused *api.Error
		require.ErrorAs(t, tt.err, &refused)
		assert.Equal(t, tt.status, refused.Status, refused.Message)
		assert.Contains(t, refused.Message, tt.text)
	}
	for _, e := range hook.AllEntries() {
		assert.Greater(t, e.Level, logrus.WarnLevel, "nobody but the caller is at fault: %s", e.Message)
	}
	maps.broken = errors.New("map full")
	var fault *api.Error
	require.ErrorAs(t, add("10.96.0.2:80", "10.1.0.1:80"), &fault)
	assert.Equal(t, http.StatusInternalServerError, fault.Status)
	require.NotEmpty(t, hook.AllEntries())
}

func TestServerRefusesWhatItDoesNotUnderstand(t *testing.T) {
	_, path := daemon(t, &apitest.Host{})
	raw := http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }}}
	for _, tt := range []struct {
		method, path, body string
		status             int
		text               string
	}{
		{"POST", "/v1/services", `{"frontend":1}`, 400, "unknown field"},
		{"POST", "/v1/services", `{`, 400, "read the request"},
		{"POST", "/v1/services", `{} {}`, 400, "more than one"},
		{"POST", "/v1/services", `{}`, 400, "no frontend"},
		{"PUT", "/v1/services", `[{"frontends":[{"address":"10.96.0.1","port":70000}]}]`, 400, "service 1 of the list"},
		{"DELETE", "/v1/services", ``, 400, "ref is missing"},
		{"POST", "/v1/endpoints", `{"ifname":"eth0"}`, 400, "netns"},
		{"GET", "/v2/services", ``, 404, "not in this daemon's API"},
		{"PATCH", "/v1/services", ``, 404, "not in this daemon's API"},
		{"POST", "/v1/services", `{"name":"` + strings.Repeat("x", 64<<20) + `"}`, 413, "too large"},
	} {
		t.Run(tt.method+tt.path+tt.text, func(t *testing.T) {
			req, err := http.NewRequest(tt.method, "http://mustang"+tt.path, strings.NewReader(tt.body))
			require.NoError(t, err)
			resp, err := raw.Do(req)
			require.NoError(t, err)
			defer resp.Body.Close()
			var body struct{ Error string }
			require.NoError(t, json.NewDecoder(resp.Body).Decode(&body))
			assert.Equal(t, tt.status, resp.StatusCode)
			assert.Contains(t, body.Error, tt.text)
		})
	}
}

func TestApplyOfTenThousandServicesPasses(t *testing.T) {
	client, _ := daemon(t, &apitest.Host{})
	specs := make([]service.Spec, 10_000)
	for i := range specs {
		specs[i].Frontend = bpf.Frontend{Addr: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), Port: 80, Protocol: bpf.ProtocolTCP}
		specs[i].Name = fmt.Sprintf("service-%d", i)
		for j := range 10 {
			specs[i].Backends = append(specs[i].Backends, service.Target{
				Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(j), byte(i >> 8), byte(i)}), 8080), Weight: 1})
		}
	}
	// The fake compares every pair of services, which is not what is tested here.
	done, err := client.ApplyServices(t.Context(), specs[:2000])
	require.NoError(t, err)
	assert.Equal(t, 2000, done.Added)
	list := make([]api.Service, 0, len(specs))
	for _, s := range specs {
		list = append(list, api.SpecOf(s))
	}
	text, err := json.Marshal(list)
	require.NoError(t, err)
	assert.Less(t, len(text), 16<<20, "far below the limit")
}

func TestListen(t *testing.T) {
	path := filepath.Join(shortDir(t), "run", "m.sock")
	l, err := api.Listen(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	info, err = os.Stat(filepath.Dir(path))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o700), info.Mode().Perm())

	_, err = api.Listen(path)
	assert.ErrorContains(t, err, "another mustang daemon answers there")
	require.NoError(t, l.Close())
	assert.NoFileExists(t, path)

	// A killed daemon leaves a socket that nobody answers.
	killed, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	killed.SetUnlinkOnClose(false)
	require.NoError(t, killed.Close())
	require.FileExists(t, path)
	_, err = api.Dial(path)
	require.ErrorIs(t, err, api.ErrNoDaemon)
	l, err = api.Listen(path)
	require.NoError(t, err)

	// A successor's socket survives its predecessor's late end.
	require.NoError(t, os.Remove(path))
	next, err := api.Listen(path)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	assert.FileExists(t, path)
	require.NoError(t, next.Close())

	require.NoError(t, os.WriteFile(path, nil, 0o600))
	_, err = api.Listen(path)
	assert.ErrorContains(t, err, "in the way")
	assert.FileExists(t, path)

	_, err = api.Listen("/tmp/" + strings.Repeat("x", 120))
	assert.ErrorContains(t, err, "at most 107 bytes")
}

func TestDialWithoutDaemon(t *testing.T) {
	_, err := api.Dial(filepath.Join(t.TempDir(), "none"))
	assert.ErrorIs(t, err, api.ErrNoDaemon)
}

// slow answers Status only once it is told to.
type slow struct {
	apitest.Host
	entered, leave chan struct{}
}

func (s *slow) Status(context.Context) (api.Status, error) {
	close(s.entered)
	<-s.leave
	return api.Status{Ready: true}, nil
}

func TestServeLetsRequestsFinish(t *testing.T) {
	path := filepath.Join(shortDir(t), "m.sock")
	l, err := api.Listen(path)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	host := &slow{entered: make(chan struct{}), leave: make(chan struct{})}
	go func() { served <- api.Serve(ctx, l, host, quiet(), nil) }()
	client, err := api.Dial(path)
	require.NoError(t, err)
	answered := make(chan api.Status, 1)
	go func() {
		status, _ := client.Status(t.Context())
		answered <- status
	}()
	<-host.entered
	stop()
	select {
	case <-served:
		t.Error("Serve returned while a request was under way")
	case <-time.After(50 * time.Millisecond):
	}
	close(host.leave)
	assert.True(t, (<-answered).Ready)
	assert.NoError(t, <-served)
}
