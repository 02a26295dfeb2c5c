"""AWS Lambda's API as boto3 and the AWS CLI speak it, over Joey's functions: a translation (docs/lambda.md)."""
