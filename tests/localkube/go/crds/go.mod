// Modules of which tests read the CustomResourceDefinitions that examples and the chart name. Nothing is compiled; ../../../gitops_tools.py lists the files.
module enginehouse.dev/localkube/crds

go 1.26.0

require (
	github.com/argoproj/argo-cd/v3 v3.3.19 // indirect
	github.com/fluxcd/kustomize-controller v1.9.6 // indirect
	github.com/fluxcd/source-controller v1.9.6 // indirect
	github.com/kedacore/keda/v2 v2.21.0 // indirect
	github.com/prometheus-operator/prometheus-operator v0.85.0 // indirect
	sigs.k8s.io/gateway-api-inference-extension v1.1.0 // indirect
)
