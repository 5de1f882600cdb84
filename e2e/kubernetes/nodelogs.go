package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// nodeLogsCommand stands in for the log endpoint of the kubelets of KWOK's nodes: what the API server
// calls for `kubectl logs`. KWOK's own endpoint keeps the logs of deleted pods, so a test that reads them
// there proves nothing.
func nodeLogsCommand() *cobra.Command {
	var kubeconfig, listen string
	command := &cobra.Command{
		Use:          "node-logs",
		SilenceUsage: true,
		Args:         cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return serveNodeLogs(ctx, kubeconfig, listen)
		},
	}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how the API server is reached")
	command.Flags().StringVar(&listen, "listen", "127.0.0.1:10250", "where logs are served, over HTTPS")
	return command
}

func serveNodeLogs(ctx context.Context, kubeconfig, listen string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.UserAgent = "e2e-node-logs"
	config.QPS, config.Burst = 1000, 2000
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	nodes, err := watchNodes(ctx, client)
	if err != nil {
		return err
	}
	certificate, err := selfSigned()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", nodes.containerLogs)
	server := &http.Server{
		Addr:      listen,
		Handler:   mux,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}},
	}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.ListenAndServeTLS("", ""); ctx.Err() == nil {
		return err
	}
	return nil
}

// nodeView holds the pods of the nodes, and which nodes do not answer.
type nodeView struct {
	client kubernetes.Interface
	pods   corelisters.PodLister
	nodes  corelisters.NodeLister

	mutex   sync.Mutex
	changed chan struct{} // closed and replaced at every change of any pod
}

func watchNodes(ctx context.Context, client kubernetes.Interface) (*nodeView, error) {
	view := &nodeView{client: client, changed: make(chan struct{})}
	scheduled := informers.WithTweakListOptions(func(options *metav1.ListOptions) {
		options.FieldSelector = fields.OneTermNotEqualSelector("spec.nodeName", "").String()
	})
	podFactory := informers.NewSharedInformerFactoryWithOptions(client, 0, scheduled)
	podInformer := podFactory.Core().V1().Pods()
	view.pods = podInformer.Lister()
	_, err := podInformer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { view.announce() },
		UpdateFunc: func(any, any) { view.announce() },
		DeleteFunc: func(any) { view.announce() },
	})
	if err != nil {
		return nil, err
	}
	nodeFactory := informers.NewSharedInformerFactory(client, 0)
	view.nodes = nodeFactory.Core().V1().Nodes().Lister()
	for _, factory := range []informers.SharedInformerFactory{podFactory, nodeFactory} {
		factory.Start(ctx.Done())
		for kind, synced := range factory.WaitForCacheSync(ctx.Done()) {
			if !synced {
				return nil, fmt.Errorf("%v could not be listed", kind)
			}
		}
	}
	return view, nil
}

func (v *nodeView) announce() {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	close(v.changed)
	v.changed = make(chan struct{})
}

// nextChange is closed at the next change of any pod. Callers get it before they read, so they miss none.
func (v *nodeView) nextChange() <-chan struct{} {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	return v.changed
}

// pod returns a pod as its node knows it. A kubelet knows the state of its containers before anybody else,
// but this watch is some milliseconds late. So only facts that cannot change any more are read from it.
func (v *nodeView) pod(ctx context.Context, namespace, name, container string) *corev1.Pod {
	pod, err := v.pods.Pods(namespace).Get(name)
	if err == nil && (isEnded(pod) || stateOf(pod, container).Terminated != nil) {
		return pod
	}
	pod, err = v.client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil || pod.Spec.NodeName == "" {
		return nil
	}
	return pod
}

func isEnded(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// selfSigned creates the endpoint's certificate. As with a kubelet's own, no client verifies it.
func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(10, 0, 0),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
