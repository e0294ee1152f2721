"""Any callable, verifier or model as a reward of responses, in processes that can be killed."""
